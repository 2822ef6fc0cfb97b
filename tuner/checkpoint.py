"""Checkpoints: a folder that appears whole or not at all, and what is needed to go on bit for bit."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import UserError

WEIGHTS, STATE, DONE = "adapter.safetensors", "state.pt", "complete.json"


def save(run: Path, step: int, weights: dict[str, Tensor], metadata: dict[str, str], state: dict[str, Any]) -> Path:
    """Write `checkpoints/step-000050/`: into a partial folder, flushed to the disk, then renamed into place.

    Raises `UserError` when the disk is full; earlier checkpoints stay as they are.
    """
    folder = run / "checkpoints" / f"step-{step:06d}"
    partial = folder.with_name(f".partial-{folder.name}")
    with enough_space(run, sum(v.nbytes for v in weights.values())):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(weights, partial / WEIGHTS, metadata)
        torch.save(state, partial / STATE)
        sizes = {name: (partial / name).stat().st_size for name in (WEIGHTS, STATE)}
        (partial / DONE).write_text(json.dumps({"step": step, "sizes": sizes}))
        for path in (*partial.iterdir(), partial):
            _flush(path)
        if folder.exists():  # a run that was resumed from an older checkpoint passes this step again
            shutil.rmtree(folder)
        partial.rename(folder)
        _flush(folder.parent)
    return folder


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and state of a checkpoint, on the CPU."""
    return load_file(folder / WEIGHTS), torch.load(folder / STATE, map_location="cpu", weights_only=True)


def complete(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    folders = sorted((run / "checkpoints").glob("step-*"))
    return [f for f in folders if re.fullmatch(r"step-\d{6,}", f.name) and _whole(f)]


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what interrupted saves left."""
    for folder in complete(run)[:-keep]:
        shutil.rmtree(folder)
    for folder in (run / "checkpoints").glob(".partial-*"):
        shutil.rmtree(folder)


def step_of(folder: Path) -> int:
    """The step that a checkpoint folder holds."""
    return int(folder.name.removeprefix("step-"))


def _whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / DONE).read_text())["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _flush(path: Path) -> None:
    """Make a file or a folder's list of names durable (folders cannot be opened on Windows)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def enough_space(folder: Path, needed: int, way: str = "") -> Iterator[None]:
    """Turn a full disk into a sentence, before writing where the size is known, else when it happens.

    way: what to do once there is space; a run is resumed.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _full(folder, f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free", way)
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder, "the disk is full", way) from error
        raise
    except Exception as error:
        # safetensors and torch wrap the system's error into their own
        if "No space left" in str(error) or "os error 28" in str(error) or "PytorchStreamWriter" in str(error):
            raise _full(folder, "the disk is full", way) from error
        raise


def _full(folder: Path, why: str, way: str) -> UserError:
    way = way or f"go on with `python -m tuner resume {folder}`. Earlier checkpoints are untouched."
    return UserError(f"There is no space left to write in {folder} ({why}); free some space, then {way}")
