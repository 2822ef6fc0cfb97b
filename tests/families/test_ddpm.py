"""What is particular to the families with a discrete noise schedule, beyond the proofs of every family."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families.case import LONG, SHORT, Case, Rig, Shape, generator
from tests.families.cases import all_cases
from tests.tiny import build
from tuner import adapters, families
from tuner.errors import UserError
from tuner.family import Framing
from tuner.recipe import LoraSpec, TrainSpec
from tuner.source import Source
from tuner.types import Batch, Media, Prompt

Checkpoint = Callable[[Case], Path]


def rig_of(checkpoint: Checkpoint, name: str) -> Rig:
    """A rig of its own."""
    return Rig(all_cases()[name], checkpoint(all_cases()[name]))


# -- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "zeros"), [("sdxl", True), ("sdxl-text", False)])
def test_sdxl_empty_prompt(checkpoint: Checkpoint, name: str, zeros: bool) -> None:
    """The empty caption is what the pipeline uses without a negative prompt: zeros only where the index says so."""
    rig = rig_of(checkpoint, name)
    with torch.no_grad():
        _, negative, _, pooled = rig.official.encode_prompt(SHORT, do_classifier_free_guidance=True)
        empty = rig.family.encode_text(rig.parts, [Prompt(LONG), Prompt("")])[1]
    assert bool(negative.any()) is not zeros
    torch.testing.assert_close(empty["embeds"], negative[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(empty["pooled"], pooled[0], atol=1e-5, rtol=1e-5)


def test_kolors_empty_prompt_is_text(checkpoint: Checkpoint) -> None:
    """Also where the index forces zeros; there the pipeline itself fails without a negative prompt."""
    rig = rig_of(checkpoint, "kolors-zeros")
    with pytest.raises(AttributeError), torch.no_grad():
        rig.official.encode_prompt(SHORT, do_classifier_free_guidance=True)
    with torch.no_grad():
        empty = rig.family.encode_text(rig.parts, [Prompt("")])[0]
    assert empty["embeds"].any()
    assert empty["pooled"].any()


@pytest.mark.parametrize(
    ("name", "limit"),
    [("sd1", 77), ("sd2", 77), ("sdxl", 77), ("kolors", 256), ("pixart_sigma", 80), ("stable_cascade", 77)],
)
def test_token_counts(checkpoint: Checkpoint, name: str, limit: int) -> None:
    """Counts are those of the encoder's own input; only captions over the limit are over it."""
    rig = rig_of(checkpoint, name)
    tokenizers = {p: rig.parts[p] for p in rig.family.text_parts if p.startswith("tokenizer")}
    for caption, fits in [(SHORT, True), ("xyzzy " * 100, False)]:
        counts = rig.family.token_counts(tokenizers, caption)
        assert {c[0] for c in counts} == set(tokenizers)
        for part, has, takes in counts:
            assert takes == limit
            assert has == len(tokenizers[part](caption).input_ids)
            assert (has <= takes) is fits


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdxl", "kolors"])
def test_the_network_is_told_of_the_crop(name: str) -> None:
    """Height before width, and the corner as (top, left)."""
    framing = Framing(original=(640, 480), scaled=(128, 96), corner=(16, 3), size=(96, 88))
    assert families.get(name)().frame_cond(framing)["time_ids"].tolist() == [480, 640, 3, 16, 88, 96]


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "kolors", "pixart_sigma", "flux1"])
def test_the_smallest_picture(checkpoint: Checkpoint, name: str) -> None:
    """A picture of the smallest allowed size passes the encoder and the network; one cell has `rate` pixels."""
    rig = rig_of(checkpoint, name)
    geometry = rig.family.geometry(rig.source)
    assert (geometry.rate, geometry.multiple) == (4, 8)
    side = geometry.multiple
    with torch.no_grad():
        z = rig.family.encode_media(rig.parts, Media(torch.rand(1, 3, side, side)))
        assert z.shape[-2:] == (side // geometry.rate,) * 2
        out = rig.family.predict(rig.parts.network, z, torch.tensor([0.5]), rig.cond([SHORT], Shape(side, side)))
    assert out.shape == z.shape
    assert torch.isfinite(out).all()


# -- schedule, refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "predicts", "steps"),
    [
        ("sd1", "epsilon", 1000),
        ("sd1-velocity", "velocity", 1000),
        ("sd2", "velocity", 1000),
        ("sd2-base", "epsilon", 1000),
        ("kolors", "epsilon", 1100),
        ("pixart_sigma", "epsilon", 1000),
    ],
)
def test_objective_is_read_from_the_scheduler(checkpoint: Checkpoint, name: str, predicts: str, steps: int) -> None:
    """Epsilon where nothing is said, velocity where it is, the alphas of the model's own scheduler."""
    rig = rig_of(checkpoint, name)
    assert rig.objective.predicts == predicts
    assert len(rig.objective.alphas_cumprod) == steps
    torch.testing.assert_close(rig.objective.alphas_cumprod, rig.official.scheduler.alphas_cumprod)


@pytest.mark.parametrize(
    ("scheduler", "snr_gamma", "says"),
    [
        ({"prediction_type": "sample"}, None, "prediction_type 'sample'"),
        ({"rescale_betas_zero_snr": True}, 5.0, "remove train.snr_gamma"),
        ({"num_train_timesteps": 500}, None, "1000 steps"),
    ],
)
def test_refuses_what_cannot_be_trained(
    tmp_path: Path, scheduler: dict[str, Any], snr_gamma: float | None, says: str
) -> None:
    """A sentence that names the setting or the source."""
    source = Source(str(build("sd1", tmp_path, scheduler=scheduler)), {})
    with pytest.raises(UserError, match=re.escape(says)):
        families.get("sd1")().objective(source, snr_gamma)


@pytest.mark.parametrize(
    ("family", "folder", "says"),
    [
        ("flux1", "sd1", "family flux1 needs one of"),
        ("sd1", "sdxl", "family sd1 needs one of"),
        ("sdxl", "kolors", "family sdxl needs one of"),
        ("sd1", "sd2", "set family: sd2."),
        ("sd2", "sd1", "set family: sd1."),
        ("pixart_sigma", "flux1", "family pixart_sigma needs one of"),
    ],
)
def test_refuses_another_familys_model(checkpoint: Checkpoint, family: str, folder: str, says: str) -> None:
    """The sentence names both sides."""
    source = Source(str(checkpoint(all_cases()[folder])), {})
    with pytest.raises(UserError, match=re.escape(says)):
        families.get(family)().accept(source)


# -- PixArt's pair of models -------------------------------------------------------------------------------------------


def pixart(checkpoint: Checkpoint, **options: Any) -> Rig:
    """A rig with further options."""
    case = type(all_cases()["pixart_sigma"])()
    case.options = {**case.options, **options}
    return Rig(case, checkpoint(case))


@pytest.mark.parametrize(("stage", "low", "high"), [("whole", 0, 1), ("first", 0.4, 1), ("second", 0, 0.4)])
def test_each_stage_trains_its_own_noise_levels(checkpoint: Checkpoint, stage: str, low: float, high: float) -> None:
    """Every t that the trainer draws lies on the stage's side, over the whole of it."""
    rig = pixart(checkpoint, stage=stage, boundary=0.4)
    trainer = rig.trainer(adapters.build(LoraSpec(rank=1), rig.family, rig.parts), TrainSpec(steps=1, precision="fp32"))
    latents = rig.latent(Shape(16, 16), 256)
    batch = Batch(latents, {}, ("x",) * 256, tuple(range(256)), 256)
    t = trainer.draw(batch).t
    assert low - 1e-3 <= t.min() < low + 0.05
    assert high - 0.05 < t.max() <= high + 1e-3


def test_samples_are_drawn_with_both_stages(checkpoint: Checkpoint) -> None:
    """Each network is asked on its own side of the boundary; a pair of equal models draws what one of them draws."""
    folder = checkpoint(all_cases()["pixart_sigma"])
    alone = pixart(checkpoint)
    shape, steps = Shape(64, 64), 6
    request = alone.case.request(alone, LONG, shape, steps)
    expected = alone.case.drawn_from_cache(alone, request)
    for stage in ("first", "second"):
        rig = pixart(checkpoint, stage=stage, boundary=0.5, other_stage=str(folder))
        other = rig.parts["other_stage"]
        seen: dict[str, list[int]] = {"own": [], "other": []}
        for name, network in (("own", rig.parts.network), ("other", other)):
            network.register_forward_pre_hook(
                lambda m, a, kwargs, to=seen[name]: to.append(int(kwargs["timestep"][0])), with_kwargs=True
            )
        torch.testing.assert_close(rig.case.drawn_from_cache(rig, request), expected, atol=1e-5, rtol=1e-5)
        above, below = (seen["own"], seen["other"]) if stage == "first" else (seen["other"], seen["own"])
        assert above
        assert below
        assert min(above) >= 500 > max(below)
        with torch.no_grad():
            other.proj_out.weight.neg_()
        changed = rig.case.drawn_from_cache(rig, request)
        assert (changed - expected).abs().max() > 1e-2


def test_the_variance_is_not_trained(checkpoint: Checkpoint) -> None:
    """The gradient of the last layer's variance half is none at all, that of the noise half is there."""
    rig = rig_of(checkpoint, "pixart_sigma")
    last = rig.parts.network.proj_out.requires_grad_(True)  # pyrefly: ignore[not-callable]
    shape = Shape(16, 16)
    out = rig.family.predict(rig.parts.network, rig.latent(shape, 1), torch.tensor([0.5]), rig.cond([SHORT], shape))
    (out * torch.randn(out.shape, generator=generator(1))).sum().backward()
    halves = last.weight.grad.reshape(4, 8, -1)  # patches, then channels: noise, variance
    assert halves[:, :4].any()
    assert not halves[:, 4:].any()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("pixart_sigma-alpha", {"max_tokens": 300}, "set options.max_tokens: 120."),
        ("pixart_sigma", {"other_stage": "x"}, "options.stage is whole"),
    ],
)
def test_pixart_refuses(checkpoint: Checkpoint, name: str, options: dict[str, Any], says: str) -> None:
    cls = families.get("pixart_sigma")
    with pytest.raises(UserError, match=re.escape(says)):
        cls(cls.Options(**options)).accept(Source(str(checkpoint(all_cases()[name])), {}))


def test_a_published_stage_is_not_trained_as_a_whole(checkpoint: Checkpoint) -> None:
    cls = families.get("pixart_sigma")
    source = Source(str(checkpoint(all_cases()["pixart_sigma"])), {})
    source.hub_id = cls.sources["900m-1024-stage2"]
    with pytest.raises(UserError, match=re.escape("set options.stage: second.")):
        cls().accept(source)
    cls(cls.Options(stage="second")).accept(source)
