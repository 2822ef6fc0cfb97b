"""Tuner: fine-tune image, video and audio diffusion models on your own machine, and trust the result."""

__version__ = "0.1.0"
