"""Noise schedules, guidance and samplers over any denoiser."""
