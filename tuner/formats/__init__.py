"""Adapter files: what they say of each module, in every dialect, read and written."""
