"""Base models: a local folder, a name the family knows, or the Hub, of which only what a phase needs is fetched."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from tuner.errors import UserError
from tuner.source import Source


@pytest.fixture
def hub(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the Hub: copies what was asked for from a tiny model; returns the folder that fills."""
    origin, fetched = tiny("flux1"), tmp_path / "snapshot"

    def snapshot_download(repo: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert repo == "owner/model"
        for path in sorted(p for p in origin.rglob("*") if p.is_file()):
            name = path.relative_to(origin).as_posix()
            wanted = any(fnmatch.fnmatch(name, p) for p in allow_patterns)
            if wanted and not any(fnmatch.fnmatch(name, p) for p in ignore_patterns):
                (fetched / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, fetched / name)
        return str(fetched)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return fetched


def weights(folder: Path) -> set[str]:
    return {p.parent.name for p in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("name", ["owner/model", "known"])
def test_a_hub_model_is_fetched_part_by_part(hub: Path, name: str) -> None:
    source = Source(name, {"known": "owner/model"})
    assert source.pipeline == "FluxPipeline" and not weights(hub)
    assert isinstance(source.load("vae", torch.float32), torch.nn.Module)
    assert weights(hub) == {"vae"}
    source.load("tokenizer", torch.float32)
    source.load("transformer", torch.float32)
    assert weights(hub) == {"vae", "transformer"}


def test_an_unreachable_hub_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="source owner/model could not be fetched from the Hub"):
        Source("owner/model", {})


def test_networks_come_frozen_and_in_the_dtype_asked_for(tiny) -> None:
    network = Source(str(tiny("sd1")), {}).load("unet", torch.bfloat16)
    assert not network.training
    assert {(p.dtype, p.requires_grad) for p in network.parameters()} == {(torch.bfloat16, False)}


def test_a_fingerprint_follows_the_bytes_and_nothing_else(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    copy = shutil.copytree(tiny("sd1"), tmp_path / "copy")
    original, moved = Source(str(tiny("sd1")), {}), Source(str(copy), {})
    assert original.fingerprint("vae") == moved.fingerprint("vae") != original.fingerprint("unet")
    file = next((copy / "vae").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert original.fingerprint("vae") != moved.fingerprint("vae")
    assert original.fingerprint("text_encoder") == moved.fingerprint("text_encoder")
