"""Latents to a teacher, and the teacher to a few-step student."""
