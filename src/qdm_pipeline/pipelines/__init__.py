"""The Kedro pipelines: in each folder plain functions (nodes.py) and their wiring (pipeline.py)."""
