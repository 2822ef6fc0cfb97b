"""Masks made automatically: people in pictures, by a small network that comes with the studio."""
