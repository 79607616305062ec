"""Distribution matching distillation of a quantized student."""
