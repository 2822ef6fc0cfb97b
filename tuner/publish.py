"""`tuner publish`: an adapter with its card and samples to the Hugging Face Hub. Knows no torch.

Told first, then sent: the list that `--dry-run` shows is the list that is uploaded. The token is huggingface_hub's
own (its log-in, or HF_TOKEN in the environment of this one process); it is never written, printed or passed on.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from . import card, licences
from .console import Console
from .errors import UserError
from .events import Journal, birth, follow
from .home import home

REPO = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?/[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?")
WEIGHTS = {".safetensors", ".json"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
CLIPS = {".mp4", ".webm", ".wav", ".flac", ".mp3", ".ogg"}
MOST_SAMPLES = 12
HEADER = 100_000_000
UNREACHED = {"TransportError", "ConnectionError", "TimeoutError"}
"""Names of the kinds of errors that mean: no answer came."""
Say = Callable[..., Any]


@dataclass(frozen=True)
class Request:
    """What is asked for. update: send into a repository that exists; its visibility stays as it is.

    files: a folder of exported files that are sent in place of the run's own; none for those.
    """

    path: Path
    repo: str
    private: bool = True
    message: str = "Upload with Tuner"
    update: bool = False
    files: Path | None = None


@dataclass(frozen=True)
class Part:
    """One file to be sent. name: its path in the repository. path: what is read on this machine. origin: of a sample,
    the file in the run that it was made of."""

    name: str
    path: Path
    origin: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size


@dataclass
class Parcel:
    """Everything that is sent: the card, and each file."""

    card: str
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shown: list[dict[str, str]] = field(default_factory=list)
    """Samples on the card: prompt, and `from`: the file in the run that each was made of."""

    def as_dict(self, request: Request) -> dict[str, Any]:
        """For `--dry-run` and the app."""
        files = [{"name": part.name, "size": part.size} for part in self.parts]
        return {"repo": request.repo, "private": request.private, "files": files,
                "size": sum(f["size"] for f in files), "card": self.card, "notes": self.notes,
                "shown": self.shown}  # fmt: skip


def main(request: Request, folder: Path | None = None, dry: bool = False) -> int:
    """Pack into the job's folder (default: a new one in the workspace), then send; returns the exit code."""
    _sensible(request)
    folder = folder or _new_folder(request.path)
    folder.mkdir(parents=True, exist_ok=True)
    if dry:
        sys.stdout.write(_told(pack(request, folder).as_dict(request)) + "\n")
        return 0
    return _watched(folder, lambda say: send(request, folder, say))


def _told(parcel: dict[str, Any]) -> str:
    if not sys.stdout.isatty():
        return json.dumps(parcel, ensure_ascii=False)
    kind = "private" if parcel["private"] else "public"
    lines = [f"{parcel['repo']} ({kind}) would receive:"]
    lines += [f"  {f['size']:>13,} bytes  {f['name']}" for f in parcel["files"]]
    return "\n".join([*lines, f"  {parcel['size']:>13,} bytes  in all", *parcel["notes"], "", parcel["card"]])


def _sensible(request: Request) -> None:
    if not REPO.fullmatch(request.repo) or ".." in request.repo or "--" in request.repo:
        raise UserError(f"--repo is {request.repo!r}; write it as owner/name, in letters, digits, dots and dashes.")
    if not request.path.is_dir():
        raise UserError(f"{request.path} is no folder; give a run's folder, or one that holds an adapter.")
    if request.files is not None and (request.files.name != "export" or not request.files.is_dir()):
        raise UserError(f"--files is {request.files}; give a folder `export` that `tuner export --out` wrote.")


def _new_folder(path: Path) -> Path:
    stem = f"{time.strftime('%Y-%m-%d')}-publish-{path.resolve().name}"
    names = (home() / "jobs" / (stem if i == 1 else f"{stem}-{i}") for i in range(1, 10_000))
    return next(name for name in names if not name.exists())


def pack(request: Request, folder: Path) -> Parcel:
    """Lay card and clean samples into `folder`/parcel and list all that is sent. Raises `UserError`."""
    recipe, path = _recipe(request.path), request.path
    exported = request.files or (path / "export" if (path / "recipe.yaml").is_file() else path)
    parts = _weights(exported, folder / "parcel")
    if not any(part.path.suffix == ".safetensors" for part in parts):
        raise UserError(f"{path} has no exported adapter to publish; let the run finish, or stop and save it first.")
    step = _stated_step(parts) if request.files else _step(path)
    shown = _samples(path, folder / "parcel", step) if recipe else []
    base = card.base_of(recipe, _sources(recipe))
    notes = []
    if not recipe:
        notes.append("This folder has no recipe, so the card cannot name base model and licence; add them on the Hub.")
    elif not base:
        notes.append("The base model is a folder of this machine, so the card cannot name it; add it on the Hub.")
    weights = next((part.name for part in parts if "/" not in part.name and part.name.endswith(".safetensors")), "")
    told = card.Facts(
        request.repo, recipe, base, weights, step, _items(path),
        tuple((prompt, part.name) for prompt, part in shown),
    )  # fmt: skip
    text = card.write(told)
    readme = folder / "parcel" / "README.md"
    readme.parent.mkdir(parents=True, exist_ok=True)
    readme.write_text(text, encoding="utf-8")
    files = [Part("README.md", readme), *parts, *(part for _, part in shown)]
    return Parcel(text, files, notes, [{"prompt": prompt, "from": part.origin} for prompt, part in shown])


def _recipe(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}/recipe.yaml cannot be read ({type(error).__name__}); put it right first.") from None
    return found if isinstance(found, dict) else {}


def _sources(recipe: dict[str, Any]) -> dict[str, str]:
    """Names of base models that a recipe may use instead of the Hub's id; asked only when it does, as that is slow."""
    family = str(recipe.get("family") or "")
    if family not in licences.FAMILIES or "/" in str(recipe.get("source") or ""):
        return {}
    return importlib.import_module("tuner.families").get(family).sources


def _weights(exported: Path, parcel: Path) -> list[Part]:
    """The adapter in every format it was written in. Links are not followed: only what lies in this folder is sent."""
    found = []
    below = exported.rglob("*") if exported.name == "export" else exported.glob("*")
    for path in sorted(below):
        if path.is_symlink() or not path.is_file() or path.suffix not in WEIGHTS or path.name.startswith("."):
            continue
        if path.suffix == ".json" and exported.name != "export":
            continue
        if not path.resolve().is_relative_to(exported.resolve()):
            continue
        name = path.relative_to(exported).as_posix().removeprefix("diffusers/")
        if path.suffix == ".json":
            path = _without_paths(path, parcel / name)
        else:
            _no_paths(path)
        found.append(Part(name, path))
    return found


def _without_paths(path: Path, clean: Path) -> Path:
    """A model's settings without the line that says from which folder it was loaded."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or "_name_or_path" not in values:
        return path
    clean.parent.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in values.items() if key != "_name_or_path"}
    clean.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    return clean


def _no_paths(path: Path) -> None:
    """Refuse an adapter whose header tells folders of this machine. Other damage is none of this check's business."""
    header = _header(path)
    for private in (str(home()), str(Path.home())):
        if len(private) > 1 and (private + "/").encode() in header:
            raise UserError(f"{path.name} names a folder of this machine in its header; export it again with Tuner.")


def _header(path: Path) -> bytes:
    """The header of a .safetensors file; empty for what is none."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        return file.read(length) if length <= HEADER else b""


def _stated_step(parts: list[Part]) -> int:
    """The step that exported files state in their header, 0 where none does."""
    for part in parts:
        if part.path.suffix == ".safetensors":
            try:
                stated = json.loads(_header(part.path))["__metadata__"]["ss_steps"]
            except (ValueError, KeyError, TypeError):
                continue
            if str(stated).isdigit():
                return int(stated)
    return 0


def _samples(run: Path, parcel: Path, step: int) -> list[tuple[str, Part]]:
    """What was drawn last up to a step, written anew so that nothing but the picture or sound itself is in the file."""
    events = [e for e in follow(run / "events.jsonl")[0] if e["kind"] == "sample" and e.get("files")]
    events = [e for e in events if not step or int(e.get("step") or 0) <= step]
    made: list[tuple[str, Part]] = []
    for entry in (events[-1]["files"] if events else [])[:MOST_SAMPLES]:
        path = run / str(entry["file"])
        if path.is_symlink() or not path.resolve().is_relative_to(run.resolve()) or not path.is_file():
            continue
        clean = _clean(path, parcel / "samples" / str(len(made)))
        if clean is not None:
            made.append((str(entry.get("prompt") or ""), Part(f"samples/{clean.name}", clean, str(entry["file"]))))
    return made


def _clean(path: Path, stem: Path) -> Path | None:
    """A copy without any metadata; nothing for what is neither picture, film nor sound."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in PICTURES:
        with Image.open(path) as image:
            plain = Image.new("RGB", image.size)
            plain.paste(image.convert("RGB"))
        plain.save(stem.with_suffix(".png"))
        return stem.with_suffix(".png")
    if path.suffix.lower() not in CLIPS:
        return None
    clean = stem.with_suffix(path.suffix.lower())
    av = importlib.import_module("av")
    with av.open(str(path)) as read, av.open(str(clean), "w") as write:
        streams = {s.index: write.add_stream_from_template(s) for s in read.streams if s.type in ("video", "audio")}
        for stream in streams.values():
            stream.metadata.clear()
        for packet in read.demux([read.streams[i] for i in streams]):
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                write.mux(packet)
    return clean


def _step(run: Path) -> int:
    steps = [e["step"] for e in follow(run / "events.jsonl")[0] if e["kind"] in ("step", "checkpoint")]
    return int(steps[-1]) if steps else 0


def _items(run: Path) -> int:
    """How many items the run read, as its journal says."""
    told = [e for e in follow(run / "events.jsonl")[0] if e["kind"] == "phase"]
    return max((int(e.get("of") or 0) for e in told if str(e["name"]).startswith("cache p")), default=0)


def send(request: Request, folder: Path, say: Say) -> dict[str, Any]:
    """Create the repository, send the parcel in one commit; returns what the last event says. Raises `UserError`."""
    say("started", pid=os.getpid(), born=birth(os.getpid()), from_step=0, steps=0, name="publish",
        repo=request.repo, private=request.private)  # fmt: skip
    parcel = pack(request, folder)
    for text in parcel.notes:
        say("note", text=text)
    say("parcel", files=parcel.as_dict(request)["files"])
    hub = importlib.import_module("huggingface_hub")
    if not hub.get_token():
        raise UserError("There is no token: run `hf auth login`, set HF_TOKEN, or enter one in the app.")
    return _sent(request, parcel, hub, say)


def _sent(request: Request, parcel: Parcel, hub: Any, say: Say) -> dict[str, Any]:
    api, stage = hub.HfApi(), "create"
    url = f"{api.endpoint}/{request.repo}"
    try:
        api.whoami()
        api.create_repo(request.repo, private=request.private, exist_ok=request.update)
        stage = "upload"
        if request.update:
            say("note", text="The repository existed already; its visibility stays as it is.")
        else:
            say("made", repo=request.repo)
        parts = [hub.CommitOperationAdd(part.name, str(part.path)) for part in parcel.parts]
        for done, part in enumerate(parts):
            say("phase", name="upload", done=done, of=len(parts))
            api.preupload_lfs_files(request.repo, [part])
        stage = "commit"
        api.create_commit(request.repo, parts, commit_message=request.message)
    except (OSError, ValueError, RuntimeError, importlib.import_module("huggingface_hub.errors").HTTPError) as error:
        told = _cause(error)
        raise UserError(f"{trouble(told, request.repo, stage)}{_aftermath(told, stage, request, url)}") from None
    say("phase", name="upload", done=len(parts), of=len(parts))
    return {"url": url}


def _cause(error: BaseException) -> BaseException:
    """What lies behind an error that only says that something failed."""
    seen: BaseException | None = error
    while seen is not None:
        if _status(seen) is not None or _kinds(seen) & UNREACHED:
            return seen
        seen = seen.__cause__ or seen.__context__
    return error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _kinds(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def trouble(error: BaseException, repo: str, stage: str = "create") -> str:
    """What went wrong at the Hub, as one sentence with the way out. Nothing of the answer is repeated.

    stage: create (the repository), upload (the large files) or commit (all of it)."""
    status = _status(error)
    known = {
        401: "The Hub does not know this token. Make a new one with write access at huggingface.co/settings/tokens.",
        403: f"This token may not write to {repo}. Choose your own name as owner, or a token with write access.",
        404: f"The Hub has no {repo}, or this token may not see it; check the owner's name.",
        409: f"{repo} exists already. Choose another name, or ask to update it.",
        413: "The Hub refused the upload because it is too large or your storage is full; make room there first.",
        429: "The Hub asks to slow down; try again in some minutes.",
    }
    if status == 409 and stage != "create":
        return f"Somebody else changed {repo} at the same time; try again."
    if status in known:
        return known[status]
    if status is not None:
        return f"The Hub answered with an error ({status}); nothing is lost here, try again later."
    names = _kinds(error)
    if "OfflineModeIsEnabled" in names:
        return "This machine is set to stay offline (HF_HUB_OFFLINE); unset that to publish."
    if names & UNREACHED:
        return "The Hub cannot be reached; check the network and try again. Nothing was changed here."
    return f"The upload failed ({type(error).__name__}); try again, and update huggingface_hub if it goes on."


def _aftermath(error: BaseException, stage: str, request: Request, url: str) -> str:
    """What is left on the Hub of an upload that failed: nothing, an empty repository, or perhaps all of it."""
    if stage == "commit" and (_status(error) or 500) >= 500:
        return f" The answer to the last step was lost, so the files may be there all the same: look at {url} first."
    if stage == "create" or request.update:
        return ""
    return f" {request.repo} was made and is still empty: send into it as one that exists, or delete it on the Hub."


def _watched(folder: Path, work: Callable[[Say], dict[str, Any]]) -> int:
    """Work with a journal; its last event says how it ended, whatever happens."""
    journal, console, began = Journal(folder / "events.jsonl"), Console(), time.monotonic()
    ended = False

    def say(kind: str, **fields: Any) -> None:
        console(journal(kind, **fields))

    try:
        end = work(say)
        say("finished", seconds=round(time.monotonic() - began, 1), folder=str(folder), **end)
        ended = True
    except UserError as error:
        say("failed", error=str(error), user=True, folder=str(folder))
        ended = True
        raise
    finally:
        if not ended:
            say("failed", error=f"Publishing broke off ({_name_of()}); nothing of yours was changed.", user=False)
        console.close()
        journal.close()
    return 0


def _name_of() -> str:
    """The kind of what went wrong. Never its text, which might repeat what must not be written down."""
    kind = sys.exc_info()[0]
    return kind.__name__ if kind else "unknown"
