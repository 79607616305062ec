"""Single-device networks: quantizer, Transformer block, predictor."""
