"""What scripts and `gradio_client` may call: the same actions as the page's, by name and with plain values.

No `from __future__ import annotations` here: Gradio reads the types of these functions to tell them to clients.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from .archives import Refused, unpack
from .parts.reader import Reader, reader
from .project import put
from .studio import Studio
from .tabs import train
from .workspace import Draft

LAYOUTS = ("diffusers", "comfyui", "kohya")
MOST_FILES = 5000
Begin = Callable[[Studio, Draft], tuple[str, str]]


class Api:
    """The endpoints. Names of data sets and runs are looked up, never used as paths; a wrong one is one sentence."""

    def __init__(self, studio: Studio, begin: Begin) -> None:
        self.studio, self.begin = studio, begin

    def list_datasets(self) -> list[dict]:
        """List the data sets of the workspace.

        Returns:
            One dictionary for each: name, pictures, captions.
        """
        sets = self.studio.workspace.datasets
        return [self._dataset(name) for name in sets.names()]

    def create_dataset(self, name: str, files: list[gr.FileData], trigger: str = "") -> dict:
        """Make a data set from uploaded files.

        Args:
            name: A name for it; another is made up when it is taken.
            files: Pictures, .txt files that hold the caption of the picture of the same name, and zips of both.
            trigger: A rare word put before every caption; it calls what was learned.

        Returns:
            name, pictures, captions, left_out (a sentence for each file that could not be used).
        """
        given = [self._uploaded(file) for file in _some(files, list)]
        with tempfile.TemporaryDirectory(dir=self.studio.workspace.uploads) as room:
            inside, refused = self._unpacked(given, Path(room))
            if not inside:
                raise _no(" ".join(refused) or "No files were given; send at least one picture.")
            if len(inside) > MOST_FILES:
                raise _no(f"{len(inside):,} files are too many at once; send at most {MOST_FILES:,}.")
            made = self.studio.workspace.datasets.create(_some(name, str))
            added = self.studio.workspace.datasets.add(made, inside)
            if not added.pictures:
                self.studio.workspace.datasets.folder(made).rmdir()
                raise _no("No file could be used. " + " ".join((refused + added.left_out)[:3]))
            self.studio.workspace.datasets.set_meta(made, {"trigger": " ".join(_some(trigger, str).split())})
        for path, _ in given:
            path.unlink(missing_ok=True)
        return {**self._dataset(made), "left_out": refused + added.left_out}

    def list_recipes(self) -> list[dict]:
        """List the recipes that can be started.

        Returns:
            One dictionary for each: id, name, family, description, steps.
        """
        shown = ("id", "name", "family", "description", "steps")
        return [{key: getattr(card, key) for key in shown} for card in self.studio.project.cards()]

    def start(self, dataset: str, recipe: str, changes: dict = {}) -> dict:  # noqa: B006 (read only, and shown to clients)
        """Check a recipe over a data set, then start training. What the page prepares stays as it is.

        Args:
            dataset: The name of a data set.
            recipe: The id of a recipe.
            changes: Settings by dotted key, for example {"train.steps": 200, "adapter.rank": 8}.

        Returns:
            run (its name) and state.
        """
        card = next((card for card in self.studio.project.cards() if card.id == recipe), None)
        if card is None:
            raise _no(f"There is no recipe {_name(recipe)}; list_recipes names them.")
        if not self.studio.workspace.datasets.exists(dataset):
            raise _no(f"There is no data set {_name(dataset)}; list_datasets names them.")
        draft = Draft(dataset, card.id, "standard", self.studio.project.plain(card))
        for key, value in _some(changes, dict).items():
            self._put(draft.raw, str(key), value)
        mistakes = self.studio.project.mistakes(draft)
        if mistakes:
            raise _no(" ".join(str(mistake["text"]) for mistake in mistakes))
        run, obstacle = self.begin(self.studio, draft)
        if not run:
            found = self.studio.checker.now(self.studio.project.yaml(draft), self.studio.project.stamp(draft))
            errors = [str(p["text"]) for p in found.get("problems") or [] if p.get("level") == "error"]
            raise _no(" ".join(errors) or obstacle)
        return {"run": run, "state": "starting"}

    def status(self, run: str) -> dict:
        """Tell how far a run is.

        Args:
            run: The name of a run.

        Returns:
            run, state (new, starting, running, finished, stopped, failed or crashed), phase, step, steps, loss,
            validation_loss, seconds_left, error (one sentence, else empty), layouts (of the adapter, once exported).
        """
        return self._status(self._run(run))

    def stop(self, run: str) -> str:
        """Stop a run after its next step; what was learned is saved first. Call again to end it at once.

        Args:
            run: The name of a run.

        Returns:
            A sentence about what was done.
        """
        return train.act(self.studio, self._run(run).folder.name, "stop")

    def resume(self, run: str) -> str:
        """Go on with a stopped or crashed run from its last checkpoint.

        Args:
            run: The name of a run.

        Returns:
            A sentence about what was done.
        """
        seen = self._run(run)
        if seen.state not in ("stopped", "failed", "crashed"):
            raise _no(f"{run} is {seen.state}; only a run that was stopped or broke off can be resumed.")
        return train.act(self.studio, seen.folder.name, "resume")

    def list_runs(self) -> list[dict]:
        """List all runs, the newest first.

        Returns:
            For each what status tells.
        """
        workspace = self.studio.workspace
        return [self._status(reader(workspace.runs / name).refresh()) for name in workspace.run_names()]

    def adapter(self, run: str, layout: str = "diffusers") -> gr.FileData:
        """Fetch what a run has learned.

        Args:
            run: The name of a run.
            layout: diffusers, comfyui or kohya, as far as status lists it.

        Returns:
            The adapter's file.
        """
        seen = self._run(run)
        if layout not in LAYOUTS:
            raise _no(f"There is no layout {_name(layout)}; the layouts are {', '.join(LAYOUTS)}.")
        files = _exported(seen.folder, layout)
        if not files:
            raise _no(f"{run} has no adapter in the layout {layout} yet; status lists the layouts.")
        return {"path": str(files[0]), "orig_name": files[0].name, "meta": {"_type": "gradio.FileData"}}  # type: ignore

    def _run(self, run: str) -> Reader:
        folder = self.studio.workspace.run(run) if isinstance(run, str) else None
        if folder is None or folder.name not in self.studio.workspace.run_names():
            raise _no(f"There is no run {_name(run)}; list_runs names them.")
        return reader(folder).refresh()

    def _status(self, seen: Reader) -> dict[str, Any]:
        last, held = seen.steps.last, (seen.validation or [{}])[-1]
        return {
            "run": seen.folder.name,
            "state": seen.state,
            "phase": str(seen.phase.get("name", "")),
            "step": seen.step,
            "steps": seen.of,
            "loss": last.get("loss"),
            "validation_loss": held.get("loss"),
            "seconds_left": seen.remaining() if seen.state == "running" else None,
            "error": seen.error(),
            "layouts": [layout for layout in LAYOUTS if _exported(seen.folder, layout)],
        }

    def _dataset(self, name: str) -> dict[str, Any]:
        sets = self.studio.workspace.datasets
        files = sets.files(name)
        return {"name": name, "pictures": len(files), "captions": sum(bool(sets.caption(path)) for path in files)}

    def _uploaded(self, file: Any) -> tuple[Path, str]:
        """A file that this app received; a path to anything else is refused."""
        path = Path(str(file.get("path", ""))).resolve() if isinstance(file, dict) else Path()
        if not path.is_relative_to(self.studio.workspace.uploads.resolve()) or not path.is_file():
            raise _no("Send files as uploads: gradio_client.handle_file(path).")
        return path, str(file.get("orig_name") or path.name)

    def _unpacked(self, given: list[tuple[Path, str]], room: Path) -> tuple[list[tuple[Path, str]], list[str]]:
        """The files with every zip replaced by its contents, and a sentence for each zip that was refused."""
        inside: list[tuple[Path, str]] = []
        refused: list[str] = []
        for number, (path, name) in enumerate(given):
            if Path(name).suffix.lower() != ".zip":
                inside.append((path, name))
                continue
            try:
                inside += unpack(path, room / str(number))
            except Refused as error:
                refused.append(f"{name}: {error}")
        return inside, refused

    def _put(self, raw: dict[str, Any], key: str, value: Any) -> None:
        if key in ("data", "data.0", "data.0.path", "data.0.trigger"):
            raise _no(
                "Pictures and trigger word come from the data set: give its name, and its trigger when you make it."
            )
        try:
            put(raw, key, value)
        except (IndexError, ValueError, TypeError, KeyError, AttributeError):
            raise _no(f"There is no setting {_name(key)}.") from None


ENDPOINTS = (
    "list_datasets",
    "create_dataset",
    "list_recipes",
    "start",
    "status",
    "stop",
    "resume",
    "list_runs",
    "adapter",
)


def build(studio: Studio, begin: Begin) -> None:
    """Add the endpoints to the page that is being built."""
    offered = Api(studio, begin)
    for name in ENDPOINTS:
        gr.api(getattr(offered, name), api_name=name, concurrency_limit=1 if name == "start" else None)


def _exported(folder: Path, layout: str) -> list[Path]:
    return sorted((folder / "export" / layout).glob("*.safetensors"))


def _some(value: Any, kind: type) -> Any:
    """A value from outside, of the kind that it should have."""
    if not isinstance(value, kind):
        raise _no(f"Expected a {kind.__name__}, not a {type(value).__name__}.")
    return value


def _name(text: Any) -> str:
    return repr(str(text)[:80])


def _no(sentence: str) -> gr.Error:
    return gr.Error(sentence, print_exception=False)
