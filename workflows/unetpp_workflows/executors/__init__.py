"""Runs the unfinished shards of many images, in this process or on Ray; importing this package starts nothing."""
