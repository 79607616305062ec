"""From video files to clips, from clips to latents, and back to something to look at."""
