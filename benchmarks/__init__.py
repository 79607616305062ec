"""Measurements against peers and floors: ``make bench SUBJECT=shards`` and the like."""
