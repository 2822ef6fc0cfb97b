"""Files that are no sound adapter of this model: one sentence each, that names the file and the way out."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from tests.formats.networks import model
from tuner.errors import UserError
from tuner.formats import dialects, file

Q = "transformer.transformer_blocks.0.attn.to_q"


def pair(rank: int = 2, other: int | None = None, columns: int = 32, rows: int = 32) -> dict[str, Tensor]:
    second = rank if other is None else other
    return {f"{Q}.lora_A.weight": torch.ones(rank, columns), f"{Q}.lora_B.weight": torch.ones(rows, second)}


def zipped() -> bytes:
    kept = io.BytesIO()
    torch.save({"a": torch.ones(2)}, kept)
    return kept.getvalue()


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "foreign": (lambda: b"not safetensors at all", "no safetensors file by its content"),
    "torch": (zipped, "is a PyTorch file under a .safetensors name"),
    "pickle": (lambda: pickle.dumps({"a": [1] * 9}), "is a pickle under a .safetensors name"),
    "truncated": (lambda: save(pair())[:-7], "damaged or was not copied whole"),
    "truncated header": (lambda: save(pair())[:40], "ends inside its header"),
    "long header": (lambda: (200_000_000).to_bytes(8, "little") + b"{", "a header of 200 MB"),
    "no tensors": (lambda: save({}), "holds no tensors"),
    "whole model": (
        lambda: save({f"model.diffusion_model.{i}.weight": torch.ones(2) for i in range(4)}), "is a whole model",
    ),
    "NaN": (lambda: save(pair() | {f"{Q}.lora_A.weight": torch.full((2, 32), torch.nan)}), "no numbers"),
    "infinite": (lambda: save(pair() | {f"{Q}.lora_B.weight": torch.full((32, 2), torch.inf)}), "no numbers"),
    "ranks": (lambda: save(pair(2, 3)), "whose sizes do not agree"),
    "rank 0": (lambda: save(pair(0)), "has rank 0"),
    "alpha 0": (lambda: save(pair() | {f"{Q}.alpha": torch.tensor(0.0)}), "states alpha 0"),
    "another size": (lambda: save(pair(columns=64)), "made for another model"),
    "stated": (lambda: save(pair(), {"lora_adapter_metadata": "{"}), "rank and alpha cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_content(name: str, tmp_path: Path) -> None:
    content, sentence = BAD[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content())
    chosen = model("flux1")
    with pytest.raises(UserError) as said:
        dialects.understood(file.read(path), chosen.places)
    text = str(said.value)
    assert sentence in text and str(path) in text and "\n" not in text


@pytest.mark.parametrize("ending", ["pt", "bin", "ckpt", "pth"])
def test_endings_that_can_hold_programs(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"can hold programs and are not opened"):
        file.read(path)


def test_oversized(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as opened:
        opened.truncate(file.LARGEST + 1)  # takes no space on the disk
    with pytest.raises(UserError, match="adapters of more than 32 GB are not opened"):
        file.read(path)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        file.read(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="is a folder"):
        file.read(tmp_path)


def test_an_adapter_of_another_family(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({f"lora_unet_down_blocks_9_x.lora_{k}.weight": torch.ones(4, 4) for k in ("down", "up")}))
    contents = dialects.understood(file.read(path), model("flux1").places)
    with pytest.raises(UserError, match=r"does not fit FLUX\.1: none of its 2 keys has a place there"):
        dialects.matched(contents, path, "FLUX.1")


def test_lengths_of_the_header_are_no_trap(tmp_path: Path) -> None:
    """A header that promises more bytes than there are."""
    head = json.dumps({f"{Q}.lora_A.weight": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 324]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"1234")
    with pytest.raises(UserError, match="damaged or was not copied whole"):
        file.read(path)
