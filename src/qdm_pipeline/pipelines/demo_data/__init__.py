"""Videos to start with."""
