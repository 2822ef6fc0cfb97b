"""Families of clips: samples from cached text are the official pipeline's own; steps in bf16 and with routed tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.families.case import LONG, SHORT, Case, Rig, generator
from tests.families.cases import all_cases
from tuner import adapters, families, sample
from tuner.blocks import on_input, walk
from tuner.errors import UserError
from tuner.extension import Context, Stack
from tuner.extensions.tread import Tread
from tuner.family import Family, Request
from tuner.recipe import LoraSpec, TrainSpec
from tuner.source import Source
from tuner.types import Batch, Cond, Prompt

CASES = all_cases()
CLIPS = [name for name in CASES if name.startswith(("wan", "hunyuan", "ltx")) and not name.startswith("ltx2")]
ROUTED = [*CLIPS, *(name for name in CASES if name.startswith(("ltx2", "ace_step")))]
NEGATIVE = "a house"
Checkpoint = Callable[[Case], Path]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("name", CLIPS)
def test_samples_from_cached_text_are_the_pipeline_s_own(name: str, guidance: float, checkpoint: Checkpoint) -> None:
    case = CASES[name]
    rig, shape = Rig(case, checkpoint(case)), case.shapes[1]
    said: dict[str, Any] = {"guidance_scale": guidance, **getattr(case, "samples", {})}
    rig.official.vae = rig.parts["vae"]  # as it is loaded, whatever the case changed about it
    drawn = {"num_inference_steps": 3, "generator": generator(5), "output_type": "pil"}
    theirs = case.run(rig.official, [LONG], shape, negative_prompt=[NEGATIVE], **drawn, **said).frames[0]
    media = case.media(rig, shape, 1)
    with torch.no_grad():
        cond, negative = (
            rig.family.encode_text(rig.parts, case.prompts(rig, [text], media, shape))[0] for text in (LONG, NEGATIVE)
        )
    picture = case.size(shape).get("image") or getattr(case, "picture", lambda _: None)(shape)
    request = Request(
        cond, negative, shape.width, shape.height, 3, guidance, 5, shape.frames, case.fps(rig), references=(picture,)
    )
    ours = sample.draw(rig.family, rig.parts, request)
    assert ours.fps == case.fps(rig)
    assert ours.frames is not None
    assert ours.frames.shape == (shape.frames, shape.height, shape.width, 3)
    np.testing.assert_array_equal(ours.frames, np.stack([np.asarray(f) for f in theirs]))


@pytest.mark.parametrize("name", ROUTED)
def test_a_step_in_bf16_with_half_the_tokens_routed_around_the_blocks(name: str, checkpoint: Checkpoint) -> None:
    """Weights and cached conditions in bf16, gradient checkpointing, TREAD on every block: as a real run has them."""
    case = CASES[name]
    rig, shape = Rig(case, checkpoint(case)), case.shapes[1]
    parts = (*rig.family.text_parts, rig.family.denoiser, *rig.family.media_parts)
    rig.parts = rig.family.load(rig.source, parts, torch.bfloat16)
    rig.parts.network.enable_gradient_checkpointing()
    rig.parts.network.train()
    adapter = adapters.build(LoraSpec(rank=4, targets="all-linear"), rig.family, rig.parts)
    trainer = rig.trainer(adapter, TrainSpec(steps=1, lr=1e-3, precision="bf16"))
    AcceleratorState._reset_state()
    trainer.accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    routed = Tread(Tread.Settings(drop=0.5, first=0, last=-1))
    trainer.stack = Stack([routed])
    trainer.stack.attach(Context(rig.family, rig.parts.network, adapter, 1))
    lengths: list[int] = []
    for block, run in walk(rig.family.blocks, rig.parts.network):
        on_input(block, run, lambda call: lengths.append(call.tokens.shape[1]))
    batch = Batch(rig.latent(shape, 2, 8), rig.cond([SHORT, LONG], shape), ("a", "b"), (0, 1), 2)
    said = trainer.step([batch])
    count = case.tokens(rig, shape)
    assert said["norm"] > 0
    assert set(lengths) == {count - round(count / 2)}


def test_hunyuan_s_two_models_are_not_mixed_up(checkpoint: Checkpoint) -> None:
    source = Source(str(checkpoint(CASES["hunyuan_video15"])), {})
    with pytest.raises(UserError, match="made for task=generate, not image_to_video"):
        families.build("hunyuan_video15", {}, "image_to_video").accept(source)


def test_hunyuan_s_token_counts_are_the_masks_of_what_it_encodes(checkpoint: Checkpoint) -> None:
    """Also that a longer padding changes nothing."""
    case = CASES["hunyuan_video15"]
    rig, captions = Rig(case, checkpoint(case)), ["a red photo", 'signs say "SEA" and “open”', ""]
    longer = families.build("hunyuan_video15", {"max_tokens": 128})
    tokenizers = {k: rig.parts[k] for k in ("tokenizer", "tokenizer_2")}
    x, t = rig.latent(case.shapes[0], 1), torch.tensor([0.4])

    def encoded(family: Family, caption: str) -> tuple[Cond, torch.Tensor]:
        with torch.no_grad():
            cond = family.encode_text(rig.parts, [Prompt(caption)])[0]
            return cond, family.predict(rig.parts.network, x, t, family.collate([cond]))

    for caption in captions:
        cond, answer = encoded(rig.family, caption)
        counts = {name: (has, takes) for name, has, takes in rig.family.token_counts(tokenizers, caption)}
        assert counts["tokenizer"] == (int(cond["mask"].sum()), 64)
        assert counts.get("tokenizer_2", (0, 256)) == (int(cond["mask_2"].sum()), 256)
        torch.testing.assert_close(encoded(longer, caption)[1], answer, atol=1e-4, rtol=1e-4)


def test_ltx_places_every_item_of_a_batch_by_its_own_frame_rate(checkpoint: Checkpoint) -> None:
    for name in ("ltx", "ltx-0.9.5"):
        case = CASES[name]
        rig, shape = Rig(case, checkpoint(case)), case.shapes[0]
        x, t = rig.latent(shape, 2), torch.tensor([0.3, 0.3])
        cond = rig.cond([LONG, LONG], shape)
        slow, fast = ({**cond, "grid": cond["grid"].clone()} for _ in range(2))
        fast["grid"][:, 2] = 30
        mixed = {**cond, "grid": torch.stack([slow["grid"][0], fast["grid"][1]])}
        with torch.no_grad():
            answers = [rig.family.predict(rig.parts.network, x, t, c) for c in (slow, fast, mixed)]
        assert not torch.allclose(answers[0], answers[1], atol=1e-4)
        torch.testing.assert_close(answers[2], torch.stack([answers[0][0], answers[1][1]]), atol=1e-5, rtol=1e-5)
