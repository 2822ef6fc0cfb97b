"""Slow work beside training that lives in a folder or only fills the cache: `tuner sample` and `tuner cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import assemble, compare, device
from .console import Console
from .data.cache import Cache
from .errors import UserError, stop_on_errors
from .home import cache_folder
from .recipe import Recipe
from .run import watched


def sample(request: Path, folder: Path) -> int:
    """Draw a comparison grid into `folder`; returns the exit code."""
    wanted = compare.read(request)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made ({error.strerror}); choose another with --out.") from None
    return watched(folder, lambda say, controls: compare.draw(wanted, folder, say, controls))


def cache(wanted: Recipe) -> int:
    """Encode everything that a recipe needs; returns the exit code."""
    console = Console()

    def say(kind: str, **fields: Any) -> None:
        console({"kind": kind, **fields})

    ready = assemble.prepare(wanted)
    stop_on_errors(ready.problems)
    store, dtype = Cache(cache_folder()), device.storage(ready.recipe, ready.device)
    pictures = assemble.fill_media(ready, store, dtype, say)
    captions = assemble.fill_text(ready, store, dtype, say)
    console.close()
    console(
        {
            "kind": "note",
            "text": f"The cache holds {len(pictures)} pictures and {len(captions)} captions of this recipe.",
        }
    )
    return 0
