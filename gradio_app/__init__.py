"""The app: a browser workbench over the engine. Knows recipes and journals, never torch.

The settings below must stand before gradio is imported: nothing leaves this machine, uploads stay in the workspace.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from tuner.home import home

from . import space

if (_kept := space.storage()) is not None:
    os.environ.setdefault("TUNER_HOME", str(_kept))

for _name, _value in {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_TEMP_DIR": str(home() / "cache" / "uploads"),
}.items():
    os.environ[_name] = _value
for _name in ("GRADIO_VIBE_MODE", "GRADIO_SHARE", "GRADIO_ALLOWED_PATHS", "GRADIO_SERVER_NAME"):
    os.environ.pop(_name, None)


def launch(**options: Any) -> Any:
    """Start the app in a notebook; see `gradio_app.notebook.launch`."""
    return importlib.import_module("gradio_app.notebook").launch(**options)
