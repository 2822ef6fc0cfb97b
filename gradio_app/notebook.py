"""The app in a notebook: `from gradio_app import launch; launch()` in Jupyter or Colab."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from gradio import Blocks

from .door import Place
from .main import build, serving
from .studio import Studio, open_studio

# Jupyter shows the app in a frame of a page on this machine.
JUPYTER = Place(frames="'self' http://localhost:* http://127.0.0.1:*")
# Only Google's proxy, which asks for the user's own log-in, reaches a port of Colab's machine; it frames the page too.
COLAB = Place(names=("*",), frames="", strict=False)


@dataclass
class Launched:
    """A running app."""

    address: str
    page: Blocks

    def close(self) -> None:
        """End the app. Trainings go on, and the next launch finds them."""
        self.page.close()


def launch(port: int | None = None, height: int = 900, studio: Studio | None = None) -> Launched:
    """Start the app and show it below the cell; other cells stay usable. No public link is made, in Colab neither."""
    studio = studio or open_studio()
    page = build(studio)
    page.queue(default_concurrency_limit=4, max_size=64)
    place = COLAB if in_colab() else JUPYTER
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        height=height,
        width="100%",
        **serving(studio, place),
    )
    sys.stdout.write(f"Tuner is at {address}; your data sets and runs are in {studio.workspace.root}\n")
    return Launched(address, page)


def in_colab() -> bool:
    """Whether this is a Colab notebook."""
    return "google.colab" in sys.modules
