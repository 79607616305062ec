"""Few-step quantized video generation: VQ latent diffusion distilled by distribution matching."""

__version__ = "0.1.0"
