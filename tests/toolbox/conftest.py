"""Tiny checkpoints and made-up adapters."""

from __future__ import annotations

from tests.engine.conftest import tiny

__all__ = ["tiny"]
