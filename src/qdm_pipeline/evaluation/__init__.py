"""How good are the samples: Fréchet distance, accuracy of the asked class, use of the codebook, report."""
