"""Frozen assistants: they act while training and in the loss, step back in samples, and are in no result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.engine.test_runs import losses, pictures
from tuner import adapters, export, families, recipe
from tuner.__main__ import main
from tuner.adapters import lora
from tuner.assistants import Assistants
from tuner.errors import UserError
from tuner.prepare import prepare
from tuner.recipe import AssistantSpec, FullSpec, LoraSpec, PeftSpec
from tuner.source import Source


@pytest.fixture(scope="module")
def assistant(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny Flux that changes much, alpha unlike rank."""
    family, adapter, parts = network(tiny, LoraSpec(rank=2, alpha=6))
    torch.manual_seed(3)
    adapter.load_state_dict({k: torch.randn_like(v) * 0.3 for k, v in adapter.state_dict().items()})
    folder = tmp_path_factory.mktemp("assistant")
    return export.adapter(adapter, family, Source(str(tiny("flux1")), {}), parts, folder)[0].path


def network(tiny, spec: Any) -> tuple[Any, Any, Any]:
    """(family, adapter, its network) on the tiny Flux."""
    family = families.get("flux1")()
    parts = family.load(Source(str(tiny("flux1")), {}), ("transformer",), torch.float32)
    torch.manual_seed(0)
    return family, adapters.build(spec, family, parts) if spec else parts, parts


def answer(parts: Any) -> torch.Tensor:
    config = parts.network.config
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return parts.network(
            torch.randn(1, 4, config.in_channels, generator=generator),
            torch.randn(1, 3, config.joint_attention_dim, generator=generator),
            torch.randn(1, config.pooled_projection_dim, generator=generator), torch.tensor([0.5]),
            torch.zeros(4, 3), torch.zeros(3, 3), torch.ones(1) if config.guidance_embeds else None, return_dict=False,
        )[0]  # fmt: skip


@pytest.mark.parametrize("spec", [LoraSpec(rank=2), LoraSpec(rank=2, dora=True), PeftSpec(), FullSpec(), None], ids=str)
def test_below_every_kind_it_is_what_its_own_loader_makes_of_it(tiny, assistant: Path, spec: Any) -> None:
    family, _, plain = network(tiny, None)
    base = answer(plain)
    lora.attach(family, plain, assistant, 0.5)
    wanted = answer(plain)
    assert (wanted - base).abs().max() > 1e-2
    _, adapter, parts = network(tiny, spec)
    below = Assistants(
        [AssistantSpec(path=str(assistant), strength=0.5, sampling=0.0)],
        family,
        Source(str(tiny("flux1")), {}),
        parts.network,
    )
    torch.testing.assert_close(answer(parts), wanted, rtol=1e-5, atol=2e-5)
    with below.sampling():
        torch.testing.assert_close(answer(parts), base, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(answer(parts), wanted, rtol=1e-5, atol=2e-5)
    if spec is not None:
        names = {n for n, p in parts.network.named_parameters() if p.requires_grad}
        assert len(names) == len(adapter.parameters()) == len(adapter.state_dict())


def run(tiny, tmp_path: Path, name: str, **more: Any) -> Path:
    """A short run; returns its folder."""
    settings = {
        "name": name, "family": "flux1", "source": str(tiny("flux1")), "options": {"max_tokens": 24},
        "adapter": {"rank": 2}, "data": [{"path": str(tmp_path / "pictures")}], "media": {"resolutions": [64]},
        "train": {"steps": 4, "lr": 1e-2, "precision": "fp32"}, "save": {"every": 2},
        "validate": {"prompts": ["a fractal"], "every": 2, "steps": 2}, **more,
    }  # fmt: skip
    if not (tmp_path / "pictures").is_dir():
        pictures(tmp_path / "pictures", 2)
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    assert main(["run", str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path / name)]) == 0
    return tmp_path / name


def first(folder: Path) -> np.ndarray:
    """The sample before the first step."""
    return np.asarray(Image.open(folder / "samples" / "step-000000-00.png")).astype(int)


def test_a_run_with_an_assistant(
    tiny, assistant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It changes what is trained and not the samples at strength 0; resuming is exact, with another file refused."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    held = tmp_path / "held" / "helper.safetensors"
    held.parent.mkdir()
    held.write_bytes(assistant.read_bytes())
    alone = run(tiny, tmp_path, "alone")
    helped = run(tiny, tmp_path, "helped", assistants=[{"path": "held/helper.safetensors", "strength": 0.7}])
    shown = run(tiny, tmp_path, "shown", assistants=[{"path": str(held), "strength": 0.7, "sampling": 1.0}])
    assert losses(helped) != losses(alone)
    assert losses(helped) == losses(shown), "the strength of samples touches training"
    assert np.array_equal(first(helped), first(alone))
    assert np.abs(first(shown) - first(alone)).max() > 4
    results = [load_file(f / "export" / "diffusers" / "pytorch_lora_weights.safetensors") for f in (alone, helped)]
    assert set(results[0]) == set(results[1])

    before = results[1]
    for kept in (helped / "checkpoints" / "step-000004").iterdir():
        kept.unlink()
    (helped / "checkpoints" / "step-000004").rmdir()
    assert main(["resume", str(helped)]) == 0
    after = load_file(helped / "export" / "diffusers" / "pytorch_lora_weights.safetensors")
    assert all(after[k].equal(v) for k, v in before.items())

    save_file({k: v * 2 for k, v in load_file(held).items()}, held)
    capsys.readouterr()
    assert main(["resume", str(helped)]) == 1
    assert (
        "assistants.0: " in (said := capsys.readouterr().err) and "not the file that this run was trained with" in said
    )


def test_what_is_no_assistant_is_said_by_check(tiny, assistant: Path, tmp_path: Path) -> None:
    made = recipe.parse({
        "family": "flux1", "source": str(tiny("flux1")), "data": [{"path": str(pictures(tmp_path / "pictures", 1))}],
        "options": {"max_tokens": 24}, "media": {"resolutions": [64]},
        "assistants": [{"path": str(tmp_path / "missing")}, {"path": str(assistant), "strength": 0}],
    })  # fmt: skip
    said = {p.where: p.text for p in prepare(made).problems if p.level == "error"}
    assert "assistants.0.path: " in said["assistants.0"] and "holds no adapter" in said["assistants.0"]
    assert "does nothing" in said["assistants.1"]


def test_an_assistant_of_another_network_is_refused(tiny, assistant: Path, tmp_path: Path) -> None:
    state = {k.replace("transformer_blocks.0.", "transformer_blocks.7."): v for k, v in load_file(assistant).items()}
    save_file(state, tmp_path / "other.safetensors")
    family, _, parts = network(tiny, None)
    with pytest.raises(UserError, match="have no place in this model"):
        Assistants(
            [AssistantSpec(path=str(tmp_path / "other.safetensors"))],
            family,
            Source(str(tiny("flux1")), {}),
            parts.network,
        )
    assert not any(m._forward_hooks for m in parts.network.modules()), "nothing stays behind"
