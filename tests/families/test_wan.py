"""Wan: which expert is asked when, the two ways to tell the time, first frames, and models that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families.case import LONG, SHORT, Case, Recorder, Rig
from tests.families.cases import all_cases
from tests.families.cases.wan import clip
from tuner import families
from tuner.errors import UserError
from tuner.source import Source
from tuner.types import Media, generator

CASES = all_cases()
Checkpoint = Callable[[Case], Path]


@pytest.mark.parametrize("name", ["wan-2.2-high", "wan-2.2-i2v"])
def test_the_pipeline_asks_each_expert_within_its_reach(name: str, checkpoint: Checkpoint) -> None:
    case = CASES[name]
    rig = Rig(case, checkpoint(case))
    low = families.build("wan", {"expert": "low"}, case.task)
    with Recorder(rig.official.transformer) as early, Recorder(rig.official.transformer_2) as late:
        case.run(rig.official, [SHORT], case.shapes[0], num_inference_steps=20)
    for family, calls in ((rig.family, early.calls), (low, late.calls)):
        asked = [call["timestep"].item() / 1000 for call in calls]
        start, end = family.reach(rig.source)
        assert len(asked) >= 3
        assert all(start <= t <= end for t in asked), (asked, start, end)
    assert low.reach(rig.source)[1] == rig.family.reach(rig.source)[0] == case.boundary  # type: ignore[attr-defined]


def test_the_trainer_draws_only_within_the_expert_s_reach(checkpoint: Checkpoint) -> None:
    case = CASES["wan-2.2-low"]
    rig = Rig(case, checkpoint(case))
    seen: list[float] = []
    predict = rig.family.predict
    rig.family.predict = lambda network, x, t, cond: seen.extend(t.tolist()) or predict(network, x, t, cond)  # type: ignore[method-assign]
    case.lora(rig, steps=10)
    assert len(seen) == 20
    assert min(seen) > 0
    assert max(seen) < 0.875


def test_the_2_1_time_embedding_gives_the_same_answer_from_one_time_per_clip(checkpoint: Checkpoint) -> None:
    case = CASES["wan-2.2-5b"]
    rig = Rig(case, checkpoint(case))
    short = families.build("wan", {"max_tokens": 64, "time_embedding": "2.1"})
    short.accept(rig.source)
    x, t = rig.latent(case.shapes[0], 2), torch.tensor([0.2, 0.9])
    cond = rig.cond([SHORT, LONG], case.shapes[0])
    with Recorder(rig.parts.network) as calls, torch.no_grad():
        each = rig.family.predict(rig.parts.network, x, t, cond)
        once = short.predict(rig.parts.network, x, t, cond)
    assert calls.calls[0]["timestep"].ndim == 2
    assert calls.calls[1]["timestep"].tolist() == pytest.approx([200, 900])
    torch.testing.assert_close(once, each, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["wan-i2v", "wan-2.2-5b-i2v"])
def test_a_reference_is_the_first_frame(name: str, checkpoint: Checkpoint) -> None:
    case = CASES[name]
    rig = Rig(case, checkpoint(case))
    pixels = clip(case.shapes[0], 1)
    other = torch.rand(pixels[:, :, 0].shape, generator=generator(2)) * 2 - 1
    replaced = pixels.clone()
    replaced[:, :, 0] = other
    with torch.no_grad():
        own = rig.family.media_cond(rig.parts, Media(pixels))[0]
        given = rig.family.media_cond(rig.parts, Media(pixels, references=(other,)))[0]
        as_own = rig.family.media_cond(rig.parts, Media(replaced))[0]
    assert own.keys() == given.keys()
    for key in own:
        assert not torch.allclose(own[key], given[key], atol=1e-3)
        torch.testing.assert_close(given[key], as_own[key])


@pytest.mark.parametrize("pixels", [torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 1, 32, 32)])
def test_single_pictures_teach_no_motion(pixels: torch.Tensor, checkpoint: Checkpoint) -> None:
    case = CASES["wan-2.2-i2v"]
    rig = Rig(case, checkpoint(case))
    with pytest.raises(UserError, match="single pictures"):
        rig.family.media_cond(rig.parts, Media(pixels))


def test_a_picture_is_a_clip_of_one_frame(checkpoint: Checkpoint) -> None:
    case = CASES["wan"]
    rig = Rig(case, checkpoint(case))
    picture = clip(case.shapes[0], 2)[:, :, 0]
    with torch.no_grad():
        z = rig.family.encode_media(rig.parts, Media(picture))
        same = rig.family.encode_media(rig.parts, Media(picture[:, :, None]))
        out = rig.family.predict(
            rig.parts.network, z, torch.tensor([0.1, 0.5]), rig.cond([SHORT, LONG], case.shapes[0])
        )
    assert z.shape == (2, 16, 1, 4, 4)
    assert torch.equal(z, same)
    assert out.shape == z.shape


@pytest.mark.parametrize(
    ("name", "options", "task", "says"),
    [
        ("wan", {"expert": "low"}, "generate", "one network for all t; remove options.expert"),
        ("wan", {}, "image_to_video", "set task=generate"),
        ("wan-i2v", {}, "generate", "set task=image_to_video"),
        ("wan-i2v", {"max_tokens": 256}, "image_to_video", "exactly 512 tokens"),
        ("wan", {"time_embedding": "2.1"}, "generate", "remove it"),
        ("wan-2.2-5b", {"time_embedding": "2.1"}, "image_to_video", "remove it"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, options: dict[str, Any], task: str, says: str, checkpoint: Checkpoint
) -> None:
    source = Source(str(checkpoint(CASES[name])), {})
    with pytest.raises(UserError, match=says):
        families.build("wan", options, task).accept(source)
