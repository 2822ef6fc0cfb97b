"""`tuner mask`: masks of the people in the pictures of a folder, as a job that can be stopped between pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ..caption.job import ENDINGS
from ..data import media, video
from ..data.container import TROUBLE
from ..errors import UserError
from ..events import birth
from ..home import home
from ..run import Controls, watched
from .person import People

Say = Callable[..., Any]
MADE = ("Software", "tuner mask")
"""What an automatic mask says in its PNG header; a painted one does not, and is never replaced."""


@dataclass(frozen=True)
class Request:
    """What `tuner mask` is asked for. path: the folder of pictures and videos. out: the folder for their masks.

    only: a text file with one item name per line; empty takes all. replace: make automatic masks anew, too.
    """

    path: Path
    out: Path
    only: Path | None = None
    replace: bool = False


def main(request: Request, folder: Path | None = None) -> int:
    """Make the masks with a journal in `folder` (default: a new one in the workspace); returns the exit code."""
    if not request.path.is_dir():
        raise UserError(f"{request.path} is no folder; give the folder with the pictures.")
    if request.out.resolve() == request.path.resolve():
        raise UserError(f"--out is {request.out}, where the pictures are; masks need a folder of their own.")
    folder = folder or home() / "jobs" / f"{time.strftime('%Y-%m-%d-%H%M%S')}-masks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be made ({error.strerror}); choose other folders.") from None
    return watched(folder, lambda say, controls: work(request, say, controls))


def work(request: Request, say: Say, controls: Controls) -> str:
    """The whole job; returns how it ended. One `mask` event per mask that is on the disk. Raises `UserError`."""
    say("started", pid=os.getpid(), born=birth(os.getpid()), from_step=0, steps=0, name="masks", device="cpu")
    todo, kept = [], 0
    for path in _items(request):
        mask = request.out / f"{path.stem}.png"
        if mask.exists() and not (request.replace and automatic(mask)):
            kept += 1
        else:
            todo.append((path, mask))
    if kept:
        say("note", text=f"{kept} {'has a mask that stays' if kept == 1 else 'have masks that stay'}.")
    people, nobody, failed = People(), [], 0
    for done, (path, mask) in enumerate(todo, 1):
        if controls.stop():
            return "stopped"
        try:
            if not _make(people, path, mask):
                nobody.append(path.name)
            else:
                say("mask", item=path.name)
        except (media.Unusable, *TROUBLE) as error:
            failed += 1
            say("warning", where=str(path), text=f"{path} {str(error).rstrip('.')}. It is left out.")
        say("phase", name="mask", done=done, of=len(todo))
    if nobody:
        text = f"No person was found in {len(nobody)} (first: {nobody[0]}); no mask was made for these."
        say("note", text=text, items=nobody)
    if todo and failed == len(todo):
        raise UserError(f"None of the {failed} pictures could be read; see the warnings in the journal.")
    return "finished"


def _make(people: People, path: Path, mask: Path) -> bool:
    """Whether there was somebody to mask. Raises what decoding raises."""
    made = people.mask(_shown(path))
    if made is not None:
        _write(made, mask)
    return made is not None


def automatic(mask: Path) -> bool:
    """Whether this mask was made by us and not touched since."""
    try:
        with Image.open(mask) as image:
            return image.info.get(MADE[0]) == MADE[1]
    except (OSError, ValueError, SyntaxError):
        return False


def _items(request: Request) -> Iterator[Path]:
    wanted = ENDINGS["image"] | ENDINGS["video"]
    there = {p.name: p for p in sorted(request.path.iterdir()) if p.suffix.lower() in wanted and p.is_file()}
    if request.only is None:
        if not there:
            raise UserError(f"{request.path} has no pictures or videos in it; give the folder that has them.")
        yield from there.values()
        return
    for name in request.only.read_text(encoding="utf-8").splitlines():
        if name not in there:
            raise UserError(f"{request.only} names {name}, but {request.path} has no such picture; take it out.")
        yield there[name]


def _shown(path: Path) -> Image.Image:
    """The picture, or one from the middle of a video: a mask counts for all of its frames."""
    if path.suffix.lower() in ENDINGS["video"]:
        return video.stills(path, 1)[0]
    return media.decode(path.read_bytes()).image


def _write(mask: Image.Image, path: Path) -> None:
    told: Any = PngImagePlugin.PngInfo()
    told.add_text(*MADE)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    mask.save(fresh, "PNG", pnginfo=told)
    fresh.replace(path)
