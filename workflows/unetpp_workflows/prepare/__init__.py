"""Turns labelled images of any kind into one training store; knows files, labels and splits, not networks.

dataset.toml -> rows -> survey of every image -> plan of patches -> shards of the store -> figures, page
"""
