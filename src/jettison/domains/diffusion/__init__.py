"""Diffusion pipelines: their denoisers, samplers and data."""
