"""Exported models in use: needs torch, einops, numpy and safetensors, and no part of the project's shell."""
