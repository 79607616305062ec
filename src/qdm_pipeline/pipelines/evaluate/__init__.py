"""Samples to numbers and a report."""
