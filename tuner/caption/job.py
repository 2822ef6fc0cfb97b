"""`tuner caption`: captions for the items of a folder, as a job with a journal that can be stopped between batches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import device
from ..data import audio, media, video
from ..data.captions import with_trigger
from ..data.container import TROUBLE
from ..data.item import Kind
from ..errors import UserError
from ..events import birth
from ..home import home
from ..run import Controls, watched
from . import PURPOSES, build
from .book import Book, writable
from .captioner import Asked, Captioner, Said, Subject

ENDINGS: dict[Kind, frozenset[str]] = {
    "image": frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}),
    "video": frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}),
    "audio": frozenset({".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus"}),
}
EDGE = 1024
"""Longest edge in pixels that a captioner is shown; models scale to about that or less themselves."""
SOUGHT = "pictures, videos or sounds"
NAMES = {"image": "picture", "video": "video", "audio": "sound"}

Say = Callable[..., Any]


@dataclass(frozen=True)
class Request:
    """What `tuner caption` is asked for. path: a folder or one file. out: where captions go, else beside the items.

    model: basic, florence, qwen, a Hub id or a model folder. replace: write automatic captions anew, too.
    only: a text file that names some of the items, one per line; None takes all.
    """

    path: Path
    model: str = "qwen"
    asked: Asked = field(default_factory=Asked)
    batch: int = 4
    replace: bool = False
    out: Path | None = None
    only: Path | None = None


@dataclass(frozen=True)
class Place:
    """An item and its caption. text: the file that the caption is written to. found: the one that there is."""

    name: str
    path: Path
    kind: Kind
    text: Path
    found: Path | None


@dataclass
class Plan:
    """What there is to do, and what is left alone."""

    book: Book
    todo: list[Place] = field(default_factory=list)
    kept: int = 0
    """Items with captions of a person or from elsewhere."""
    automatic: int = 0
    """Items with automatic captions that are not replaced."""
    blank: list[str] = field(default_factory=list)
    """Those of the kept whose text file is empty."""
    shared: list[str] = field(default_factory=list)
    """Items that share the text file of one before."""


def main(request: Request, folder: Path | None = None) -> int:
    """Caption with a journal in `folder` (default: a new one in the workspace); returns the exit code."""
    if request.asked.purpose not in PURPOSES:
        raise UserError(f"--purpose is {request.asked.purpose!r}; it must be one of {', '.join(PURPOSES)}.")
    if request.batch < 1 or request.asked.limit < 1:
        raise UserError("--batch and --max-tokens must be 1 or more.")
    folder = folder or _new_folder(request.path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made ({error.strerror}); choose another with --job.") from None
    return watched(folder, lambda say, controls: work(request, say, controls))


def _new_folder(path: Path) -> Path:
    """A folder for the journal: jobs/DATE-captions-NAME in the workspace, with a number when that is taken."""
    stem = f"{time.strftime('%Y-%m-%d')}-captions-{path.resolve().name or 'all'}"
    names = (home() / "jobs" / (stem if i == 1 else f"{stem}-{i}") for i in range(1, 10_000))
    return next(name for name in names if not name.exists())


def work(request: Request, say: Say, controls: Controls) -> str:
    """The whole job; returns how it ended. One `caption` event per caption that is on the disk. Raises `UserError`."""
    where = device.pick()
    say("started", pid=os.getpid(), born=birth(os.getpid()), from_step=0, steps=0, name="captions",
        family=request.model, device=where.name, precision="fp32" if where.kind == "cpu" else "bf16")  # fmt: skip
    plan = prepare(request)
    captioner = build(request.model)
    _fits(plan, captioner, request, say)
    _told(plan, say)
    if not plan.todo:
        plan.book.save()
        say("note", text="There is nothing to caption.")
        return "finished"
    writable(plan.book.folder)
    say("phase", name="load", done=0, of=0)
    for sentence in captioner.load(where, request.asked):
        say("note", text=sentence)
    return Work(request, plan, captioner, say).go(controls)


def prepare(request: Request) -> Plan:
    """What is to be captioned. Raises `UserError` where there is nothing that could be."""
    path = request.path.expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist; give the folder with the {SOUGHT}, or one of them.")
    root = path if path.is_dir() else path.parent
    out = (request.out or root).expanduser()
    plan, seen = Plan(Book.open(out)), set()
    places = list(_places(path, root, out))
    if not places:
        raise UserError(f"{path} has no {SOUGHT} in it; give the folder that has them.")
    for place in _chosen(places, request):
        state = plan.book.state(place.name, place.found)
        if place.text in seen:
            plan.shared.append(place.name)
        elif state == "kept" or (place.found is not None and out != root and place.found.parent != place.text.parent):
            plan.kept += 1
            plan.blank += [place.name] if place.found and not place.found.stat().st_size else []
        elif state == "auto" and not request.replace:
            plan.automatic += 1
        else:
            plan.todo.append(place)
        seen.add(place.text)
    return plan


def _chosen(places: list[Place], request: Request) -> list[Place]:
    """Those that `only` names, in the order of the folder. Raises `UserError` for a name that is not there."""
    if request.only is None:
        return places
    try:
        names = set(request.only.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--only {request.only} cannot be read ({error}); give a text file of item names.") from None
    if unknown := sorted(names - {p.name for p in places}):
        raise UserError(
            f"{request.only} names {unknown[0]}, but {request.path} has no such item; take it out of the list."
        )
    return [p for p in places if p.name in names]


def _places(path: Path, root: Path, out: Path) -> Iterator[Place]:
    """Every item below a folder (hidden ones left out), in the order of their names."""
    kinds = {ending: kind for kind, endings in ENDINGS.items() for ending in endings}
    files = list(_files(path)) if path.is_dir() else [path]
    near = files if path.is_dir() else path.parent.iterdir()
    texts = {_stem(f): f for f in near if f.suffix.lower() == ".txt"}
    for file in sorted(f for f in files if f.suffix.lower() in kinds):
        name = file.relative_to(root)
        text = (out / name).with_suffix(".txt")
        found = texts.get(_stem(file)) or (text if text.exists() else None)
        target = found if found is not None and out == root else text
        yield Place(name.as_posix(), file, kinds[file.suffix.lower()], target, found)


def _files(root: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden; links are followed, each folder once."""
    seen = {os.path.realpath(root)}
    for at, folders, names in os.walk(root, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".") and os.path.realpath(Path(at) / f) not in seen]
        seen.update(os.path.realpath(Path(at) / f) for f in folders)
        yield from (Path(at) / name for name in names if not name.startswith("."))


def _stem(path: Path) -> str:
    return str(path.with_suffix(""))


def _fits(plan: Plan, captioner: Captioner, request: Request, say: Say) -> None:
    """Leave out what this captioner cannot be shown, and say it. Raises `UserError` if that is all."""
    purpose = request.asked.purpose
    if purpose == "sound" and plan.todo and not any(p.kind == "audio" for p in plan.todo):
        raise UserError(f"--purpose is sound, but {request.path} has none to caption; choose another purpose.")
    if purpose not in ("sound", "general") and any(p.kind == "audio" for p in plan.todo):
        say("note", text=f"Sounds are described as sounds; the purpose {purpose} is for pictures and videos.")
    usable = captioner.kinds - {"image", "video"} if purpose == "sound" else captioner.kinds
    odd = [p for p in plan.todo if p.kind not in usable]
    if odd and len(odd) == len(plan.todo):
        raise UserError(
            f"{captioner.name} cannot describe a {NAMES[odd[0].kind]}, and there is nothing else to caption; "
            "choose another --model, or basic."
        )
    plan.todo = [p for p in plan.todo if p.kind in usable]
    if odd:
        text = f"{_items(len(odd))} left out (first: {odd[0].name}); {captioner.name} with the purpose {purpose} "
        say("warning", where=str(odd[0].path), text=f"{text}does not describe a {NAMES[odd[0].kind]}.")


def _told(plan: Plan, say: Say) -> None:
    if plan.kept:
        have = "has a caption of its own and stays" if plan.kept == 1 else "have captions of their own and stay"
        say("note", text=f"{plan.kept} {have} as {'it is' if plan.kept == 1 else 'they are'}.")
    if plan.blank:
        text = f"{_items(len(plan.blank))} among them with an empty .txt (first: {plan.blank[0]})"
        say("note", text=f"{text}; delete that file to have a caption written.")
    if plan.automatic:
        say("note", text=f"{_items(plan.automatic)} captioned already; --overwrite-auto writes those captions anew.")
    if plan.shared:
        say("warning", where=plan.shared[0], text=f"{_items(len(plan.shared))} named like another but for the ending, "
            f"and share its caption (first: {plan.shared[0]}); rename them to tell them apart.")  # fmt: skip


def _items(count: int) -> str:
    return "1 item is" if count == 1 else f"{count} items are"


class Work:
    """The loop over batches."""

    def __init__(self, request: Request, plan: Plan, captioner: Captioner, say: Say) -> None:
        self.request, self.plan, self.captioner, self.say = request, plan, captioner, say
        self.texts: dict[str, str] = {}
        self.written = self.failed = self.empty = self.cut = self.passed = 0

    def go(self, controls: Controls) -> str:
        """Caption everything; returns "finished" or "stopped". Raises `UserError` if nothing could be."""
        todo, size, end = self.plan.todo, self.request.batch, "finished"
        try:
            for start in range(0, len(todo), size):
                if controls.stop():
                    end = "stopped"
                    break
                self._batch(todo[start : start + size])
                self.say("phase", name="caption", done=min(start + size, len(todo)), of=len(todo))
        finally:
            self._save()  # whatever happens, what was said is kept
        if self.failed == len(todo):
            raise UserError(f"None of the {len(todo)} items could be read; see the warnings in the journal.")
        self._last_notes(end)
        return end

    def _batch(self, places: Sequence[Place]) -> None:
        with ThreadPoolExecutor(min(4, len(places))) as pool:
            looked = list(zip(places, pool.map(self._look, places), strict=True))
        shown = [(place, subject) for place, subject in looked if isinstance(subject, Subject)]
        for place, reason in looked:
            if isinstance(reason, str):
                self.failed += 1
                self.say("warning", where=str(place.path), text=f"{place.path} {reason.rstrip('.')}. It is left out.")
        if not shown:
            return
        for (place, _), said in zip(shown, self._ask([s for _, s in shown]), strict=True):
            self._take(place, said)
        if self.plan.book.due:
            self._save()

    def _ask(self, subjects: Sequence[Subject]) -> list[Said]:
        try:
            return self.captioner.caption(subjects, self.request.asked)
        except (torch.OutOfMemoryError, MemoryError):
            raise UserError(
                f"Memory ran out; lower --batch (it is {self.request.batch}), or choose a smaller model (florence, "
                "basic). The captions written so far are kept."
            ) from None

    def _look(self, place: Place) -> Subject | str:
        """An item as the captioner wants it, or why it cannot be read."""
        wants = self.captioner
        try:
            if place.kind == "audio":
                sound = None
                if wants.rate:
                    sound = audio.read(place.path, 0.0, wants.seconds, wants.rate, 1)[0]
                    sound = np.trim_zeros(sound, "b") if sound.any() else sound[: wants.rate]
                return Subject(place.name, place.kind, sound=sound, tags=audio.tags(place.path))
            if place.kind == "video":
                images = video.stills(place.path, wants.stills)
            else:
                images = [media.decode(place.path.read_bytes()).image]
        except media.Unusable as reason:
            return str(reason)
        except TROUBLE as error:
            return f"cannot be read ({error}); check the file"
        for image in images:
            image.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
        return Subject(place.name, place.kind, tuple(images))

    def _take(self, place: Place, said: Said) -> None:
        self.cut += not said.whole
        if not said.text:
            self.empty += 1
            text = f"{self.captioner.name} has nothing to say about {place.name}; no caption is written."
            self.say("warning", where=str(place.path), text=text)
            return
        if self.plan.book.state(place.name, place.text if place.text.exists() else None) == "kept":
            self.passed += 1
            self.say("note", text=f"{place.name} was given a caption by hand meanwhile, which stays.")
            return
        text = with_trigger(said.text, self.request.asked.trigger)
        self.texts[place.name] = text
        self.plan.book.add(place.name, place.text, text, self.captioner.name, self.request.asked.purpose)

    def _save(self) -> None:
        for name in self.plan.book.save():
            self.written += 1
            self.say("caption", item=name, text=self.texts.pop(name), done=self.written, of=len(self.plan.todo))

    def _last_notes(self, end: str) -> None:
        if self.cut:
            limit = self.request.asked.limit
            count = "1 caption was" if self.cut == 1 else f"{self.cut} captions were"
            text = f"{count} cut at the limit of {limit} tokens, back to the last whole sentence where there was one"
            self.say("warning", where="--max-tokens", text=f"{text}; raise --max-tokens for longer ones.")
        if end == "stopped":
            rest = len(self.plan.todo) - self.written - self.failed - self.empty - self.passed
            self.say("note", text=f"Stopped with {rest} items to go; the same command goes on with them.")
