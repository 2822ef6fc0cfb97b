"""Different ways to the same weights: accumulation, checkpointing, caching, several settings of precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.test_runs import pictures
from tuner import assemble, prepare
from tuner.data import tensor
from tuner.errors import UserError
from tuner.recipe import parse
from tuner.types import Media


@pytest.fixture
def recipe(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """recipe(family, **changes of groups) → parsed recipe on five pictures of two shapes."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    folder = pictures(tmp_path / "pictures")

    def make(family: str = "flux1", **groups: Any):
        raw = {
            "family": family, "source": str(tiny(family)), "data": [{"path": str(folder)}],
            "options": {"max_tokens": 24} if family == "flux1" else {},
            "media": {"resolutions": [64]}, "adapter": {"kind": "lora", "rank": 4},
            "train": {"steps": 6, "batch": 2, "lr": 1e-2, "precision": "fp32"},
        }  # fmt: skip
        for group, change in groups.items():
            raw[group] = {**raw.get(group, {}), **change}
        return parse(raw)

    return make


def trained(recipe: Any, steps: int = 5) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and adapter after a few steps."""
    job = assemble.build(prepare.prepare(recipe), lambda *_, **__: None)
    batches = job.loader.steps(0)
    losses = [job.trainer.step(next(batches))["loss"] for _ in range(steps)]
    batches.close()
    return losses, job.trainer.adapter.state_dict()


def assert_equal(a: tuple, b: tuple, tolerance: float) -> None:
    assert a[0] == pytest.approx(b[0], rel=tolerance)
    for name, value in a[1].items():
        torch.testing.assert_close(value, b[1][name], rtol=0, atol=tolerance * 10)


@pytest.mark.parametrize("family", ["flux1", "sdxl"])
def test_accumulation_equals_a_larger_batch(recipe, family: str) -> None:
    """2 x 1 and 1 x 2 see the same items, noise and t; losses agree to 1e-5, weights to 1e-4 (Adam divides by √v)."""
    two = trained(recipe(family, train={"batch": 2, "accumulate": 1}))
    one = trained(recipe(family, train={"batch": 1, "accumulate": 2}))
    assert_equal(two, one, 1e-5)
    other = trained(recipe(family, train={"batch": 2, "seed": 1}))
    assert other[0] != pytest.approx(two[0], rel=1e-3)


@pytest.mark.parametrize("family", ["flux1", "sdxl"])
def test_checkpointing_changes_nothing(recipe, family: str) -> None:
    """Recomputed activations are the same numbers: bit-equal losses, weights to 1e-6."""
    plain = trained(recipe(family))
    saved = trained(recipe(family, memory={"checkpointing": True}))
    assert_equal(plain, saved, 1e-7)


@pytest.mark.parametrize("family", ["flux1", "sd1", "sdxl"])
def test_cached_latents_are_those_of_the_encoder(recipe, family: str) -> None:
    """What training sees equals a fresh encode of the picture, to 1e-5."""
    ready = prepare.prepare(recipe(family))
    job = assemble.build(ready, lambda *_, **__: None)
    parts = ready.family.load(ready.source, ready.family.media_parts, torch.float32)
    for i, planned in enumerate(ready.plan):
        with torch.no_grad():
            fresh = ready.family.encode_media(parts, Media(tensor.pixels(planned)[None]))
        torch.testing.assert_close(job.loader.fixed([i]).latents, fresh, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "prodigy", "adafactor", "lion", "schedulefree"])
def test_every_optimiser_resumes_exactly(recipe, name: str, tmp_path: Path) -> None:
    """Stop after three steps, save, load into a new process's worth of objects, go on: bit-equal to five in a row."""
    from tuner import run as runs

    said: list[tuple[str, dict]] = []
    wanted = recipe(train={"optimizer": name, "lr": None, "steps": 5}, validate={"prompts": [], "every": 2})

    def at(count: int, folder: Path, resume: Path | None = None) -> dict[str, torch.Tensor]:
        ready = prepare.prepare(wanted)
        job = assemble.build(ready, lambda kind, **fields: said.append((kind, fields)))
        folder.mkdir(exist_ok=True)
        running = runs.Run(ready, job, folder, lambda kind, **fields: said.append((kind, fields)))
        if resume:
            running.restore(resume)
        batches = job.loader.steps(job.trainer.index)
        while job.trainer.index < count:
            job.trainer.step(next(batches))
            running.validate()
        batches.close()
        running.save()
        return job.trainer.adapter.state_dict()

    straight = at(5, tmp_path / "a")
    at(3, tmp_path / "b")
    resumed = at(5, tmp_path / "b", tmp_path / "b" / "checkpoints" / "step-000003")
    assert all(value.equal(resumed[key]) for key, value in straight.items())


def test_bf16_and_fp32_learn_the_same_thing(recipe) -> None:
    """Autocast rounds, but the losses stay within 2 %."""
    fine, coarse = trained(recipe()), trained(recipe(train={"precision": "bf16"}))
    assert coarse[0] == pytest.approx(fine[0], rel=0.02)
    assert coarse[0] != fine[0]
    assert all(value.dtype == torch.float32 for value in coarse[1].values())


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(recipe) -> None:
    """torch.compile fuses, which rounds otherwise: losses within 1e-4. Takes a minute and wants a C++ compiler."""
    assert_equal(trained(recipe()), trained(recipe(memory={"compile": True})), 1e-4)


def test_another_attention_backend_gives_the_same_losses(recipe) -> None:
    """The same sums in another order: losses within 1e-5. An unknown name is refused with the names there are."""
    assert_equal(trained(recipe()), trained(recipe(memory={"attention": "_native_math"})), 1e-5)
    with pytest.raises(UserError, match=r"memory\.attention is 'nonsense'.*native"):
        trained(recipe(memory={"attention": "nonsense"}))
