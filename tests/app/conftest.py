"""A workspace of its own for every test, and the fake engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gradio_app.studio import Studio, open_studio
from gradio_app.workspace import Workspace
from tests.app.helpers import FAKE


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    """A studio whose engine is the fake one."""
    return open_studio(Workspace(tmp_path / "home"), (sys.executable, str(FAKE), "0.01"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five small pictures with awkward names."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for i, name in enumerate(("one.png", "two words.jpg", "<b>three.png", "..four.webp", "CON.png")):
        Image.new("RGB", (64 + i, 64), (40 * i, 90, 120)).save(folder / name)
    return folder


@pytest.fixture
def context() -> Iterator[Any]:
    """A browser window and its guard: no request may leave this machine, no script may fail."""
    from tests.app.browser import watched

    with watched() as pair:
        yield pair
