"""From a node to its workers and back: the elastic agent, the worker's front door, the table of jobs."""
