"""Loops that train, checkpoint and sample."""
