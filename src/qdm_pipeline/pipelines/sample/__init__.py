"""Models to videos and token ids."""
