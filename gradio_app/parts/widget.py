"""One `gr.HTML` per screen: Python sends values, a script in this folder draws them and sends events back."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import gradio as gr

HERE = Path(__file__).resolve().parent
SCRIPTS = (
    "common",
    "words",
    "frame",
    "masks",
    "grid",
    "recipe",
    "plot",
    "train",
    "compare",
    "outgoing",
    "library",
    "pages",
)
STYLES = ("controls", "frame", "grid", "recipe", "train", "compare", "library")

SILENT: dict[str, Any] = {"at": 0.0}
"""The notice before anything was done."""


def scripts() -> str:
    """Page style and all scripts for the head of the page, served from here: no request leaves the machine."""
    page = (HERE / "page.css").read_text(encoding="utf-8")
    code = "\n".join((HERE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    return f"<style>{page}</style><script>{code}</script>"


def style() -> str:
    """The style of the widgets, which Gradio scopes to its container."""
    return "\n".join((HERE / f"{name}.css").read_text(encoding="utf-8") for name in STYLES)


def widget(name: str, value: dict[str, Any], identity: str, events: tuple[str, ...] = ()) -> gr.HTML:
    """A widget that `Tuner.NAME` draws. The template never holds a value, so nothing in a value can become HTML."""
    known = " ".join(f"'{event}'" for event in events)
    return gr.HTML(
        value,
        elem_id=identity,
        html_template='<div class="t-widget"></div>',
        js_on_load=f"/* {known} */ Tuner.{name}(element, trigger, props, watch, upload);",
        apply_default_css=False,
    )


class Ticket:
    """Numbers that only grow, near the time of day: also when somebody sets the clock back.

    Of two views the page keeps the one with the higher number.
    """

    def __init__(self) -> None:
        self._last, self._lock = 0.0, threading.Lock()

    def __call__(self) -> float:
        """The next one."""
        with self._lock:
            self._last = max(time.time(), self._last + 0.001)
            return self._last


ticket = Ticket()


def notice(**words: Any) -> dict[str, Any]:
    """What was just done or refused, dated.

    It is kept in the session and goes along with every later view, so that no clock wipes it away before it is read;
    of a late view with an older one the page keeps its newer one.
    """
    return {"at": ticket(), **words}


def quiet(**more: Any) -> dict[str, Any]:
    """How every handler of the page is bound: at once, without a veil, not part of the public interface.

    `multiple`: by default Gradio drops an event while the one before it is still at work, and with it an edit.
    """
    fixed = {"queue": False, "show_progress": "hidden", "api_visibility": "private", "trigger_mode": "multiple"}
    return {**fixed, **more}
