"""Videos to clips to latents."""
