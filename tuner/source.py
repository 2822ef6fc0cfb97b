"""A base model on disk: a local folder in Hub layout, or a Hub snapshot fetched part by part."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .errors import UserError
from .home import cache_folder

WEIGHTS = ("*.safetensors", "*.json", "*.txt", "*.model")
VARIANTS = ("*.fp16.*", "*.bf16.*", "*.non_ema.*", "*.ema_only.*")
"""Copies of the same weights that a plain load does not read."""


class Source:
    """The files of one model.

    name: what the recipe said. Raises `UserError` when it is no model folder, no Hub id, or lacks a part.
    """

    def __init__(self, name: str, known: dict[str, str]) -> None:
        self.name = name
        target = known.get(name, name)
        folder = Path(target).expanduser()
        self.hub_id = None
        if folder.is_dir():
            self.folder = folder
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", target) and not target.startswith("."):
            self.hub_id = target
            self.folder = self._fetch(["model_index.json", "*/*.json", "*.json"])
        else:
            names = ", ".join(known) or "none"
            raise UserError(
                f"source is {name!r}, which is neither a folder, nor a Hub id (owner/name), "
                f"nor a name this family knows ({names}); correct the path or name."
            )
        if not (self.folder / "model_index.json").is_file():
            raise UserError(
                f"source {self.folder} is not a model folder: it has no model_index.json. "
                "Point to a folder in the Hub's diffusers layout (transformer/ or unet/, vae/, text_encoder/ ...)."
            )

    def _fetch(self, patterns: Sequence[str]) -> Path:
        from huggingface_hub import snapshot_download  # noqa: PLC0415  (local folders never load it)
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

        assert self.hub_id is not None
        try:
            return Path(snapshot_download(self.hub_id, allow_patterns=list(patterns), ignore_patterns=list(VARIANTS)))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(
                f"source {self.hub_id} could not be fetched from the Hub ({type(error).__name__}); check the name, "
                "your network, and for gated models that you accepted the licence and ran `hf auth login`."
            ) from None

    @cached_property
    def index(self) -> dict[str, Any]:
        """`model_index.json`."""
        return self._json(self.folder / "model_index.json")

    @property
    def pipeline(self) -> str:
        """Class name of the pipeline that the model was saved from."""
        return str(self.index.get("_class_name", ""))

    @property
    def flags(self) -> dict[str, Any]:
        """Plain values in the index that the pipeline takes as arguments, such as `force_zeros_for_empty_prompt`."""
        return {k: v for k, v in self.index.items() if k[0] != "_" and isinstance(v, bool | int | float | str)}

    def has(self, part: str) -> bool:
        """Whether the index names this component and does not leave it empty."""
        entry = self.index.get(part)
        return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a component, {} when it has none."""
        for name in ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json"):
            if (path := self.folder / part / name).is_file():
                return self._json(path)
        return {}

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); download the model again.") from None

    def _class(self, part: str) -> Any:
        library, name = self.index[part]
        cls = getattr(_module(library), name, None)
        if cls is None:
            raise UserError(f"source {self.name}: {part} wants {library}.{name}, which the installed libraries lack.")
        return cls

    def load(self, part: str, dtype: torch.dtype) -> Any:
        """Load one component with its own class. Networks come frozen and in evaluation mode.

        Raises `UserError` naming the part when its folder or weights are missing or do not fit.
        """
        if not self.has(part):
            raise UserError(f"source {self.name} has no {part} in its model_index.json; this family needs one.")
        self._want(part)
        folder = self.folder / part
        if not folder.is_dir():
            raise UserError(f"source {self.name} lacks the folder {part}/; download the whole model.")
        library, cls = self.index[part][0], self._class(part)
        network = issubclass(cls, torch.nn.Module)
        if library == "transformers":  # its bars are longer than the loading of small models, and break ours
            importlib.import_module("transformers.utils.logging").disable_progress_bar()
        try:
            loaded = cls.from_pretrained(folder, **({"torch_dtype": dtype} if network else {}))
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"source {self.name}: {part} could not be loaded ({first}); download it again.") from error
        return loaded.requires_grad_(False).eval() if network else loaded

    def outline(self, part: str) -> torch.nn.Module:
        """A component's network without its weights, on the meta device: what they will be, from its configuration.

        Raises `UserError` where the configuration does not fit its class.
        """
        cls = self._class(part)
        try:
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                if hasattr(cls, "load_config"):
                    return cls.from_config(cls.load_config(self.folder / part))
                return cls(cls.config_class.from_pretrained(self.folder / part))
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"source {self.name}: {part} has no usable configuration ({first}).") from error

    def component(self, part: str) -> Path:
        """The folder of a component with its weights. Raises `UserError` when the model has none."""
        if not self.has(part):
            raise UserError(f"source {self.name} has no {part} in its model_index.json.")
        self._want(part)
        if not (self.folder / part).is_dir():
            raise UserError(f"source {self.name} lacks the folder {part}/; download the whole model.")
        return self.folder / part

    def whole(self) -> Path:
        """The folder with every component's files on this disk."""
        for part in self.index:
            if self.has(part):
                self._want(part)
        return self.folder

    def file(self, name: str) -> Path | None:
        """A file at the top of the model that belongs to no component, None when there is none."""
        if self.hub_id:
            self._fetch([name])
        path = self.folder / name
        return path if path.is_file() else None

    def _want(self, part: str) -> None:
        """Have a component's files on this disk."""
        if self.hub_id:
            self._fetch([f"{part}/{pattern}" for pattern in WEIGHTS])

    def fingerprint(self, *parts: str) -> str:
        """A hash over the bytes of these components and the pipeline's class, which may decide how they are called:
        what a cache entry made with them depends on."""
        for part in parts:
            self._want(part)
        return hashlib.sha256(f"{self.pipeline} {contents(self.folder, *parts)}".encode()).hexdigest()


def contents(folder: Path, *parts: str) -> str:
    """A hash over the names and bytes of these components of a folder, wherever it lies; large files are read once."""
    digest = hashlib.sha256()
    for part in parts:
        for path in sorted(p for p in (folder / part).rglob("*") if p.is_file()):
            digest.update(f"{part}/{path.relative_to(folder / part)}".encode() + _file_hash(path).encode())
        if (path := folder / f"{part}.safetensors").is_file():
            digest.update(f"{part}.safetensors".encode() + _file_hash(path).encode())
    return digest.hexdigest()


def _module(library: str) -> Any:
    """What an index means by a library, None for one that no index should name: importing a module runs it.

    A pipeline of diffusers may bring classes of its own; the index then names the pipeline (Kolors, Stable Cascade's
    `wuerstchen`, which diffusers has since moved among the deprecated ones and no longer finds itself).
    """
    if library in ("diffusers", "transformers"):
        return importlib.import_module(library)
    for place in (f"diffusers.pipelines.{library}", f"diffusers.pipelines.deprecated.{library}"):
        if find_spec(place):
            return importlib.import_module(place)
    return None


def _file_hash(path: Path) -> str:
    """sha256 of a file, remembered by path, size and time so that large weights are read once."""
    real = path.resolve()
    stat = real.stat()
    if stat.st_size < 1_000_000:
        return hashlib.sha256(real.read_bytes()).hexdigest()
    tag = hashlib.sha256(f"{real}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()
    memo = cache_folder() / "fingerprints" / tag
    if memo.is_file():
        return memo.read_text()
    with real.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    memo.parent.mkdir(parents=True, exist_ok=True)
    partial = memo.with_suffix(f".{hash(memo) & 0xFFFF}.tmp")
    partial.write_text(value)
    partial.replace(memo)
    return value
