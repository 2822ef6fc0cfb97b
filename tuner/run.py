"""A run as a process: the folder it lives in, its journal, its controls, and its last words."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from . import assemble, checkpoint, device, optimizers, prepare, provenance, recipe
from .adapter import Written
from .console import Console
from .errors import UserError
from .events import Journal, birth, follow
from .progress import progress
from .recipe import Recipe

REQUESTS = ("stop", "save", "sample")


class Stopped(Exception):
    """Someone asked the run to end before it had begun to train. What is cached stays."""


class Controls:
    """Requests are files: someone creates `control/NAME`, the run takes it at the next step border."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "control"
        self.folder.mkdir(exist_ok=True)
        for name in REQUESTS:  # requests to an earlier session are not meant for this one
            self.take(name)
        self.stopping = False
        self._before: dict[int, Any] = {}

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """While it lasts, SIGTERM and SIGINT ask the run to stop; afterwards they do what they did before it.

        A notebook keeps its Ctrl-C, and processes that are forked later can be ended. In other threads than the main
        one, where Python allows no handlers, only the files count.
        """
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._signalled) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self._before = {}

    def _signalled(self, *_: object) -> None:
        self.stopping = True

    def take(self, name: str) -> bool:
        """Whether someone asked for `name` since the last call."""
        try:
            (self.folder / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def stop(self) -> bool:
        """Whether the run should end at this border."""
        self.stopping = self.stopping or self.take("stop")
        return self.stopping


def start(wanted: Recipe, folder: Path) -> int:
    """A new run in `folder`; returns the exit code. Raises `UserError` if the folder already holds a run."""
    if checkpoint.complete(folder) or any(e["kind"] == "step" for e in follow(folder / "events.jsonl")[0]):
        raise UserError(
            f"{folder} already holds a run; go on with `python -m tuner resume {folder}` or choose another --out."
        )
    return _session(wanted, folder, resume=False)


def resume(folder: Path, steps: int = 0) -> int:
    """Go on with the run in `folder` from its newest whole checkpoint; returns the exit code.

    steps: train to this step, more than before. It is told in the journal, and counts from then on; `recipe.yaml`
    stays as the run was started.
    """
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder} is no run folder: it has no recipe.yaml; give the folder that --out named.")
    wanted = recipe.load(folder / "recipe.yaml")
    before = extended(folder) or wanted.train.steps
    if steps:
        _may_extend(wanted, before, steps)
    return _session(_until(wanted, steps or before), folder, resume=True)


def extended(folder: Path) -> int:
    """To which step the run was extended, 0 if it never was."""
    found = [e["steps"] for e in follow(folder / "events.jsonl")[0] if e["kind"] == "extended"]
    return int(found[-1]) if found else 0


def _until(wanted: Recipe, steps: int) -> Recipe:
    return wanted.model_copy(update={"train": wanted.train.model_copy(update={"steps": steps})})


def _may_extend(wanted: Recipe, before: int, steps: int) -> None:
    """Raises `UserError` where more steps would not be the same training, only longer."""
    if steps <= before:
        raise UserError(f"--steps is {steps}, but this run has {before} steps already; give a higher number.")
    way = "start a new run with adapter.start set to this run's folder"
    if wanted.train.schedule != "constant":
        raise UserError(
            f"This run's learning rate follows train.schedule={wanted.train.schedule}, which ends at step {before}; "
            f"it cannot be extended. To learn more, {way}."
        )
    text = getattr(wanted.adapter, "text", None)
    if text is not None and text.until is not None:
        raise UserError(
            f"adapter.text.until is a share of this run's {before} steps; it cannot be extended. To learn more, {way}."
        )


def _session(wanted: Recipe, folder: Path, resume: bool) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The run folder {folder} cannot be made ({error.strerror}); choose another with --out."
        ) from None
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder} is already running; stop it first, or choose another --out.") from None
    with lock:
        return watched(folder, lambda say, controls: train(wanted, folder, say, controls, resume))


def watched(folder: Path, work: Callable[[Callable[..., Any], Controls], str]) -> int:
    """Do `work` with a journal, and tell how it ended, whatever happens. `work` returns its last event's kind."""
    journal, console, began = Journal(folder / "events.jsonl"), Console(), time.monotonic()

    def say(kind: str, **fields: Any) -> None:
        console(journal(kind, **fields))

    try:
        controls = Controls(folder)
        with controls.heeding():
            try:
                end = work(say, controls)
            except Stopped:
                end = "stopped"
            say(end, seconds=round(time.monotonic() - began, 1), folder=str(folder), **_step(folder))
    except UserError as error:
        way_out = {"remedy": error.remedy} if error.remedy else {}
        _last_words(say, "failed", error=str(error), user=True, folder=str(folder), **way_out)
        sys.stderr.write(f"{error}\n")
        return 1
    except BaseException as error:
        # the one place that catches everything: whoever looks at the folder later must learn what happened
        plain = _plain(error, folder)
        text = plain or f"{type(error).__name__}: {error}"
        _last_words(say, "failed", error=text, user=bool(plain), trace=traceback.format_exc(), folder=str(folder))
        sys.stderr.write(traceback.format_exc())
        return 1 if plain else 2
    finally:
        console.close()
        journal.close()
    return 0


def _last_words(say: Callable[..., Any], kind: str, **fields: Any) -> None:
    try:
        say(kind, **fields)
    except OSError:
        sys.stderr.write("The journal could not be written (is the disk full?).\n")


def _plain(error: BaseException, folder: Path) -> str:
    """A sentence for what can go wrong anywhere and is the user's to solve; "" for everything else."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return (
            "Memory ran out. Lower train.batch or media.resolutions, or set memory.checkpointing=true; "
            "the last checkpoint is untouched."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"There is no space left to write in {folder}; free some, then `python -m tuner resume {folder}`."
    return ""


def _step(folder: Path) -> dict[str, int]:
    steps = [e["step"] for e in follow(folder / "events.jsonl")[0] if e["kind"] == "step"]
    return {"step": steps[-1]} if steps else {}


def train(wanted: Recipe, folder: Path, say: Callable[..., Any], controls: Controls, resume: bool) -> str:
    """The whole life of a training run; returns "finished" or "stopped". Raises `Stopped` for a stop in between."""
    whole = checkpoint.complete(folder) if resume else []
    begin = checkpoint.step_of(whole[-1]) if whole else 0
    first = recipe.load(folder / "recipe.yaml").train.steps if resume else wanted.train.steps
    longer = wanted.train.steps > (extended(folder) or first)
    say(
        "started",
        pid=os.getpid(),
        born=birth(os.getpid()),
        from_step=begin,
        steps=wanted.train.steps,
        name=wanted.name,
        family=wanted.family,
        device=device.pick().name,
        precision=wanted.train.precision,
    )
    if longer:
        say("extended", steps=wanted.train.steps, text=f"The run now ends at step {wanted.train.steps}.")
    heeding = _heeding(say, controls)
    heeding("phase", name="prepare", done=0, of=0)
    ready = prepare.prepare(wanted, progress(heeding, "prepare"))
    for problem in ready.problems:
        if problem.level != "error":
            say(problem.level, where=problem.where, text=problem.text)
    held = len(np.unique(ready.plan.rows[ready.held]))
    say(
        "planned",
        items=len(np.unique(ready.plan.rows)),
        left_out=ready.left_out,
        held=held,
        per_epoch=ready.sampler.steps_per_epoch if len(ready.trained) else 0,
    )
    _keep(_until(ready.recipe, first), folder)
    provenance.keep(ready, folder)
    job = assemble.build(ready, heeding)
    run = Run(ready, job, folder, say)
    say("hooks", hooks=job.trainer.stack.hooks())
    if whole:
        run.restore(whole[-1])
    return run.go(controls)


def _heeding(say: Callable[..., Any], controls: Controls) -> Callable[..., Any]:
    """Tell, and stop at the next word about how far a phase is, if someone asked for it."""

    def told(kind: str, **fields: Any) -> None:
        say(kind, **fields)
        if kind == "phase" and controls.stop():
            raise Stopped

    return told


def _keep(resolved: Recipe, folder: Path) -> None:
    """Write `recipe.yaml` whole or not at all: a run whose recipe was torn by a kill could not go on."""
    partial = folder / ".recipe.yaml"
    with checkpoint.enough_space(folder, 0):
        partial.write_text(recipe.dump(resolved), encoding="utf-8")
        partial.replace(folder / "recipe.yaml")


def told(files: list[Written], folder: Path) -> dict[str, Any]:
    """What the `export` event says: `path` is the main file's, `verified` holds for all."""
    said = [
        {
            "path": str(f.path.relative_to(folder)), "format": f.format, "loads_in": list(f.loads_in),
            "problems": list(f.problems),
        }
        for f in files
    ]  # fmt: skip
    return {"path": said[0]["path"], "verified": not any(f.problems for f in files), "files": said}


@dataclass
class Run:
    """Training with everything around it: validation, checkpoints, export."""

    ready: prepare.Prepared
    job: assemble.Job
    folder: Path
    say: Callable[..., Any]

    def go(self, controls: Controls) -> str:
        """Train to the end or until someone stops it."""
        trainer, spec = self.job.trainer, self.ready.recipe
        if self._unseen(trainer.index):
            self.validate()
        self.say("phase", name="train", done=trainer.index, of=spec.train.steps)
        steps, saved = self.job.loader.steps(trainer.index), trainer.index
        while trainer.index < spec.train.steps and not controls.stop():
            began = time.perf_counter()
            said = trainer.step([b.to(trainer.accelerator.device) for b in next(steps)])
            seconds = round(time.perf_counter() - began, 4)
            used = device.memory(self.ready.device)
            self.say("step", step=trainer.index, of=spec.train.steps, seconds=seconds, **said, memory=used)
            last = trainer.index == spec.train.steps
            if last or trainer.index % spec.save.every == 0 or controls.take("save"):
                self.save()
                saved = trainer.index
            if last or self._due() or controls.take("sample"):
                self.validate()
        steps.close()
        if controls.stopping and trainer.index < spec.train.steps:
            if saved != trainer.index:
                self.save()
            return "stopped"
        self.say("phase", name="export", done=0, of=0)
        with checkpoint.enough_space(self.folder, 0):
            files = assemble.exported(self.job, self.ready, self.folder, self.say)
        self.say("export", **told(files, self.folder))
        return "finished"

    def _due(self) -> bool:
        spec = self.ready.recipe.validation
        return spec is not None and self.job.trainer.index % spec.every == 0

    def _unseen(self, step: int) -> bool:
        """Whether a validation is due here that no earlier session did (it may have been killed before it)."""
        last = "sample" if self.job.validator is not None and self.job.validator.prompts else "validation"
        seen = {e["step"] for e in follow(self.folder / "events.jsonl")[0] if e["kind"] == last}
        return (step == 0 or step == self.ready.recipe.train.steps or self._due()) and step not in seen

    def validate(self) -> None:
        """Validation loss and samples, if the recipe asks for them."""
        if (validator := self.job.validator) is None:
            return
        step = self.job.trainer.index
        self.say("validation", step=step, **validator.loss())
        if validator.prompts:
            with checkpoint.enough_space(self.folder, 0):
                files = validator.samples(self.folder / "samples", step)
            self.say("sample", step=step, files=files, folder=str(self.folder / "samples"))

    def save(self) -> None:
        """A checkpoint, then the deletion of those that are too many."""
        trainer = self.job.trainer
        with optimizers.evaluation(trainer.optimizer):
            weights = trainer.adapter.state_dict()
        weights_live = trainer.adapter.state_dict()
        state = {
            "index": trainer.index,
            "live": {k: v for k, v in weights_live.items() if not v.equal(weights[k])},
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.scheduler.state_dict(),
            "scaler": trainer.accelerator.scaler.state_dict() if trainer.accelerator.scaler else {},
            "extensions": trainer.stack.state_dict(),
            "assistants": self.job.assistants.hashes,
        }
        path = checkpoint.save(self.folder, trainer.index, weights, trainer.adapter.metadata(), state)
        checkpoint.prune(self.folder, self.ready.recipe.save.keep)
        self.say("checkpoint", step=trainer.index, path=str(path.relative_to(self.folder)))

    def restore(self, folder: Path) -> None:
        """Take everything back from a checkpoint."""
        weights, state = checkpoint.load(folder)
        self.job.assistants.must_be(state.get("assistants", []))
        trainer = self.job.trainer
        trainer.adapter.load_state_dict({**weights, **state["live"]})
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.scheduler.load_state_dict(state["scheduler"])
        if trainer.accelerator.scaler and state["scaler"]:
            trainer.accelerator.scaler.load_state_dict(state["scaler"])
        trainer.stack.load_state_dict(state["extensions"])
        trainer.index = state["index"]
