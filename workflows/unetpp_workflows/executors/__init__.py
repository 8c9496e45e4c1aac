"""Runs shards and other work, in this process, in others or on Ray; importing this package starts nothing."""
