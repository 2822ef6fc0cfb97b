"""Slow work beside training that lives in a folder or only fills the cache: `tuner sample`, `export` and `cache`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import assemble, checkpoint, compare, device, prepare, provenance, recipe
from .adapter import Written
from .console import Console
from .data import fill
from .data.cache import Cache
from .errors import UserError, stop_on_errors
from .events import birth
from .export import Wish
from .home import cache_folder
from .progress import progress
from .recipe import Recipe
from .run import Controls, told, watched
from .toolbox import export as toolbox

Say = Callable[..., Any]


def sample(request: Path, folder: Path) -> int:
    """Draw a comparison grid into `folder`; returns the exit code."""
    wanted = compare.read(request)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made ({error.strerror}); choose another with --out.") from None
    return watched(folder, lambda say, controls: compare.draw(wanted, folder, say, controls))


@dataclass(frozen=True)
class Export:
    """What `tuner export` is asked for. path: a run, one of its checkpoints, or an adapter file.

    formats: none for those of the recipe, of a file for all that its family has. save: precision and metadata, where
    they are not the recipe's or the file's own. family, model: of a file's base, where the file does not tell.
    """

    path: Path
    formats: tuple[str, ...] = ()
    save: dict[str, str] = field(default_factory=dict)
    out: Path | None = None
    family: str = ""
    model: str = ""


def export(asked: Export, job: Path | None = None) -> int:
    """Write an adapter again, checked; returns the exit code: 1 where a file does not load as it was trained.

    job: a folder for the journal of this, for whoever watches.
    """
    if job is not None:
        return _journalled(asked, job)
    console = Console()

    def say(kind: str, **fields: Any) -> None:
        console({"kind": kind, **fields})

    verified = _written(asked, say)
    console.close()
    return 0 if verified else 1


def _journalled(asked: Export, job: Path) -> int:
    try:
        job.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {job} cannot be made ({error.strerror}); choose another with --job.") from None

    verified: list[bool] = []

    def work(say: Say, controls: Controls) -> str:
        say("started", pid=os.getpid(), born=birth(os.getpid()), from_step=0, steps=0, name="export")
        say("phase", name="export", done=0, of=0)
        verified.append(_written(asked, say))
        return "finished"

    return watched(job, work) or int(not all(verified))


def _written(asked: Export, say: Say) -> bool:
    """Write the files and tell of them; whether all are as they should be."""
    if asked.path.is_file():
        target = asked.out or asked.path.with_name(f"{asked.path.stem}-export")
        files = _of_file(asked, target, say)
    else:
        files, target = _of_run(asked, say)
    event = told(files, target)
    say("export", **event)
    return bool(event["verified"])


def _of_file(asked: Export, target: Path, say: Say) -> list[Written]:
    def tell(text: str) -> None:
        say("note", where="", text=text)

    save = recipe.SaveSpec.model_validate(asked.save)
    wish = Wish(asked.path.stem, asked.formats, metadata=save.metadata, tell=tell)
    return toolbox.files(asked.path, target, wish, asked.save.get("precision", ""), (asked.family, asked.model), tell)


def _of_run(asked: Export, say: Say) -> tuple[list[Written], Path]:
    run, chosen = _checkpoint(asked.path)
    wanted = recipe.load(run / "recipe.yaml")
    save = {**wanted.save.model_dump(), **asked.save, **({"formats": list(asked.formats)} if asked.formats else {})}
    change = {"save": recipe.SaveSpec.model_validate(save), "memory": recipe.MemorySpec()}
    ready = prepare.without_data(wanted.model_copy(update=change))
    stop_on_errors(prepare.formats(ready))
    trainer = assemble.load_trainer(ready, device.storage(ready.recipe, ready.device))
    weights, state = checkpoint.load(chosen)
    trainer.adapter.load_state_dict(weights)
    trainer.stack.load_state_dict(state["extensions"])
    target = asked.out or (run / "export" if asked.path == run else run / "export" / chosen.name)
    facts = provenance.known(run, ready.recipe, ready.family) | {"ss_steps": str(checkpoint.step_of(chosen))}
    with trainer.stack.sampling():
        return assemble.write(trainer, ready, target, facts, say), target


def _checkpoint(path: Path) -> tuple[Path, Path]:
    """(run folder, checkpoint folder) of a run, whose newest is meant, or of a checkpoint. Raises `UserError`."""
    if (path / "recipe.yaml").is_file():
        whole = checkpoint.complete(path)
        if not whole:
            raise UserError(f"{path} has no checkpoint yet; let the run reach one first.")
        return path, whole[-1]
    run = path.resolve().parent.parent
    if path.resolve() in checkpoint.complete(run) and (run / "recipe.yaml").is_file():
        return run, path.resolve()
    raise UserError(f"{path} is no run folder and no whole checkpoint of one; give RUN or RUN/checkpoints/step-000050.")


def cache(wanted: Recipe) -> int:
    """Encode everything that a recipe needs; returns the exit code."""
    console = Console()

    def say(kind: str, **fields: Any) -> None:
        console({"kind": kind, **fields})

    ready = prepare.prepare(wanted, progress(say, "prepare"))
    for problem in ready.problems:
        if problem.level != "error":
            say(problem.level, text=problem.text)
    stop_on_errors(ready.problems)
    store, dtype = Cache(cache_folder()), device.storage(ready.recipe, ready.device)
    keys, before = assemble.keys_of(ready, dtype), store.size()["bytes"]
    media = assemble.fill_media(ready, store, keys, dtype, say)
    texts, _ = assemble.fill_text(ready, store, keys, dtype, say)
    console.close()
    size = store.size()
    text = (
        f"The cache holds the {media} media entries and {texts} texts of this recipe; {_size(size['bytes'] - before)} "
        f"were added, {_size(size['bytes'])} are on disk in all."
    )
    say("cache", media=media, texts=texts, **size, added=size["bytes"] - before, text=text)
    return 0


def verify() -> int:
    """Read every cache entry and compare it with its checksum; returns the exit code."""
    console = Console()
    told = Cache(cache_folder()).verify(progress(lambda kind, **fields: console({"kind": kind, **fields}), "verify"))
    console.close()
    damaged = len(told["damaged"])
    gone = f"{damaged} damaged shards were deleted and are made anew when needed" if damaged else "none is damaged"
    console({"kind": "cache", **told, "text": f"{told['entries']} cache entries are whole; {gone}."})
    return 0


def prune(kept: list[Recipe], days: float) -> int:
    """Delete the cache entries that none of these recipes needs, in shards not used for some days; the exit code."""
    console, keep = Console(), set()
    for wanted in kept:
        ready = prepare.prepare(wanted)
        stop_on_errors(ready.problems)
        keys = assemble.keys_of(ready, device.storage(ready.recipe, ready.device))
        keep |= set(keys.all())
        keep |= set(fill.everything_told(keys, assemble.told_by_samples(ready, keys)))
    told = Cache(cache_folder()).prune(keep, days)
    text = f"{told['entries']} cache entries were deleted, {_size(told['bytes'])} freed."
    console({"kind": "cache", **told, "text": text})
    return 0


def _size(count: int) -> str:
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{count} bytes"
