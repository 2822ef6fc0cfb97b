"""A model component's weights on disk, read and written one tensor at a time: memory does not grow with the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError

NAMES = ("diffusion_pytorch_model", "model")
"""How the libraries call a component's weights: diffusers, transformers."""
NUMBERS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
CODES = {v: k for k, v in NUMBERS.items()}
MODEL_PREFIX = "text_model."
"""Published CLIPs have it in their files; transformers' networks have it in some classes and not in others."""


@dataclass(frozen=True)
class Entry:
    """One tensor in a file."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Weights:
    """The weights of one component's folder, whole or in shards. Raises `UserError` when they cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _files(folder)
        self.entries: dict[str, Entry] = {}
        for file in self.files:
            self.entries |= _entries(file)
        self._open: tuple[Path, Any] | None = None

    def get(self, key: str) -> Tensor:
        """One tensor; only its file is open."""
        file = self.entries[key].file
        if self._open is None or self._open[0] != file:
            self._open = (file, safe_open(file, "pt"))
        return self._open[1].get_tensor(key)

    def key(self, name: str) -> str | None:
        """What the files call a network's `name`, such as `transformer_blocks.0.attn.to_q.weight`; None: not there."""
        for candidate in (name, MODEL_PREFIX + name, name.removeprefix(MODEL_PREFIX)):
            if candidate in self.entries:
                return candidate
        return None

    def of(self, module: str) -> Tensor | None:
        """The weight of a module by its name in the network, None where it has none."""
        key = self.key(f"{module}.weight")
        return None if key is None else self.get(key)


def _files(folder: Path) -> list[Path]:
    for name in NAMES:
        index = folder / f"{name}.safetensors.index.json"
        if index.is_file():
            try:
                files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, AttributeError) as error:
                raise UserError(f"{index} cannot be read ({error}); download the model again.") from None
            if missing := [f for f in files if not (folder / f).is_file()]:
                raise UserError(f"{folder} lacks {missing[0]}, which its index names; download the model again.")
            return [folder / f for f in files]
        if (whole := folder / f"{name}.safetensors").is_file():
            return [whole]
    if any(folder.glob("*.bin")):
        raise UserError(
            f"{folder} has its weights as .bin files, which can hold programs and are not opened; "
            "take a version of the model in .safetensors."
        )
    raise UserError(f"{folder} has no weights ({NAMES[0]}.safetensors or {NAMES[1]}.safetensors); download it again.")


def header(file: Path) -> dict[str, Any]:
    """The table of a safetensors file. Raises `UserError` when the file is damaged."""
    try:
        with safe_open(file, "pt"):  # its own checks: sizes, overlaps, length
            pass
        with file.open("rb") as raw:
            return json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); download it again.") from None


def _entries(file: Path) -> dict[str, Entry]:
    found = {}
    for key, about in header(file).items():
        if key == "__metadata__":
            continue
        if about["dtype"] not in NUMBERS:
            raise UserError(
                f"{file} has numbers of type {about['dtype']}, which are not known here; take another file."
            )
        found[key] = Entry(file, tuple(about["shape"]), NUMBERS[about["dtype"]])
    return found


def stream(path: Path, entries: dict[str, Entry], metadata: dict[str, str], get: Callable[[str], Tensor]) -> None:
    """Write a safetensors file, asking for one tensor after the other; then read all back and compare.

    entries: shape and dtype that `get` will give for each key. Raises `AssertionError` when the file differs.
    """
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for key, entry in entries.items():
        offsets = [start, start + entry.nbytes]
        table[key] = {"dtype": CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
        start = offsets[1]
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    sums: dict[str, str] = {}
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for key, entry in entries.items():
            tensor = get(key)
            if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
                raise AssertionError(f"{key} is {tensor.dtype} {tuple(tensor.shape)}, {entry} was announced")
            raw = _bytes(tensor)
            sums[key] = hashlib.sha256(raw).hexdigest()
            file.write(raw)
    with safe_open(path, "pt") as written:
        for key in written.keys():  # noqa: SIM118
            if hashlib.sha256(_bytes(written.get_tensor(key))).hexdigest() != sums.pop(key):
                raise AssertionError(f"{path}: {key} is not what was written")
    if sums:
        raise AssertionError(f"{path} lacks {sorted(sums)[:3]}")


def _bytes(tensor: Tensor) -> memoryview:
    raw: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)


def shards(weights: Weights) -> Iterator[tuple[Path, dict[str, Entry]]]:
    """Each file with its entries."""
    for file in weights.files:
        yield file, {k: e for k, e in weights.entries.items() if e.file == file}
