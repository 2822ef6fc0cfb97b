"""What the families with Qwen2.5-VL do beside the proofs: pictures at their real size, limits, refusals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests.families.case import LONG, SHORT, Case, Rig, smooth
from tests.families.cases import all_cases, longcat_image, qwen_image
from tests.tiny import write
from tuner import families
from tuner.blocks import Aligned
from tuner.errors import UserError
from tuner.extensions.tread import cut
from tuner.families._latents import pictures
from tuner.family import Request
from tuner.source import Source
from tuner.types import Media, Prompt

Checkpoint = Callable[[Case], Path]


class Reached(Exception):
    """The network would be called now."""


class Seen:
    """Notes what autoencoder and text encoder are given, and answers zeros of the right shape."""

    def __init__(self) -> None:
        self.pixels: list[Tensor] = []
        self.told: list[dict[str, Any]] = []

    def encode(self, pixels: Tensor) -> Any:
        self.pixels.append(pixels)
        zeros = torch.zeros(len(pixels), 16, *pixels.shape[2:-2], pixels.shape[-2] // 8, pixels.shape[-1] // 8)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: zeros))

    def read(self, **told: Any) -> Any:
        self.told.append(told)
        return SimpleNamespace(hidden_states=[torch.zeros(*told["input_ids"].shape, 32)])

    @contextmanager
    def instead(self, vae: Any, text_encoder: Any) -> Any:
        with patch.object(vae, "encode", self.encode), patch.object(text_encoder, "forward", self.read):
            yield


@contextmanager
def real_areas() -> Any:
    """The pipelines' own areas of 1 MP, which the cases make small."""
    edit, plus = qwen_image.pipeline_qwenimage_edit, qwen_image.pipeline_qwenimage_edit_plus
    longcat = longcat_image.pipeline_longcat_image_edit
    with (
        patch.object(edit, "calculate_dimensions", qwen_image.calculate_dimensions),
        patch.object(longcat, "calculate_dimensions", longcat_image.calculate_dimensions),
        patch.object(plus, "VAE_IMAGE_SIZE", 1024 * 1024),
        patch.object(plus, "CONDITION_IMAGE_SIZE", 384 * 384),
    ):
        yield


@pytest.mark.parametrize(
    ("name", "sizes", "areas"),
    [
        ("qwen_image-edit", [(300, 200)], [(1248, 832)]),
        ("qwen_image-edit-several", [(300, 200), (640, 700)], [(1248, 832), (992, 1056)]),
        ("longcat_image-edit", [(300, 200)], [(1264, 848)]),
    ],
)
def test_pictures_to_edit_are_prepared_as_the_pipeline_prepares_them(
    name: str, sizes: list[tuple[int, int]], areas: list[tuple[int, int]], checkpoint: Checkpoint
) -> None:
    """At 1 MP: what autoencoder and text encoder see in training is what they see when the official pipeline draws."""
    case = all_cases()[name]
    rig = Rig(case, checkpoint(case))
    references = tuple(smooth((1, 3, height, width), 9 + i) for i, (width, height) in enumerate(sizes))
    images = [pictures(r)[0] for r in references]
    ours, theirs = Seen(), Seen()
    with real_areas():
        with (
            theirs.instead(rig.official.vae, rig.official.text_encoder),
            patch.object(rig.official.transformer, "forward", side_effect=Reached),
            pytest.raises(Reached),
        ):
            several = name == "qwen_image-edit-several"
            rig.official(image=images if several else images[0], prompt=[SHORT], **case.no_guidance)
        with ours.instead(rig.parts["vae"], rig.parts["text_encoder"]):
            width, height = areas[0]
            rig.family.media_cond(rig.parts, Media(torch.zeros(1, 3, height, width), references=references))
            rig.family.encode_text(rig.parts, [Prompt(SHORT, tuple(r[0] for r in references))])
    assert [(p.shape[-1], p.shape[-2]) for p in theirs.pixels] == areas
    for mine, official in zip(ours.pixels, theirs.pixels, strict=True):
        torch.testing.assert_close(mine, official, atol=0, rtol=0)
    for mine, official in zip(ours.told, theirs.told, strict=True):
        for key in ("input_ids", "pixel_values", "image_grid_thw"):
            torch.testing.assert_close(mine[key], official[key], atol=0, rtol=0)


@pytest.mark.parametrize("name", ["qwen_image", "kandinsky5_image", "kandinsky5_video"])
def test_token_counts_are_those_of_the_embeddings(name: str, checkpoint: Checkpoint) -> None:
    case = all_cases()[name]
    rig = Rig(case, checkpoint(case))
    tokenizers = {part: rig.parts[part] for part in rig.family.text_parts if "tokenizer" in part}
    for caption in (SHORT, LONG):
        [(_, count, limit)] = rig.family.token_counts(tokenizers, caption)
        with torch.no_grad():
            [cond] = rig.family.encode_text(rig.parts, [Prompt(caption)])
        assert count == int(cond.get("length", len(cond["embeds"]))) < limit
    long = LONG * 20
    [(_, count, limit)] = rig.family.token_counts(tokenizers, long)
    with torch.no_grad():
        [cond] = rig.family.encode_text(rig.parts, [Prompt(long)])
    assert count > limit == int(cond.get("length", len(cond["embeds"])))


def test_longcat_spells_what_is_quoted_and_cuts_edits_that_its_pipeline_would_fail_on(checkpoint: Checkpoint) -> None:
    case = all_cases()["longcat_image-edit"]
    rig = Rig(case, checkpoint(case))

    class Words:
        """A tokenizer of words."""

        def __call__(self, text: str, add_special_tokens: bool) -> Any:
            return SimpleNamespace(input_ids=text.split())

    assert rig.family.token_counts({"tokenizer": Words()}, 'a sign "open now" there') == [("tokenizer", 3 + 9, 512)]
    tokenizer = rig.parts["tokenizer"]
    [(_, count, limit)] = rig.family.token_counts({"tokenizer": tokenizer}, LONG * 20)
    assert count > limit == 512
    picture = (smooth((3, 64, 64, 1), 4)[..., 0],)
    with torch.no_grad():
        cut_here, shorter = rig.family.encode_text(rig.parts, [Prompt(LONG * 20, picture), Prompt(LONG, picture)])
    assert cut_here["embeds"].shape == shorter["embeds"].shape


def test_a_clips_own_first_frame_is_what_its_picture_would_be(checkpoint: Checkpoint) -> None:
    case = all_cases()["kandinsky5_video-image"]
    rig = Rig(case, checkpoint(case))
    clip = ((smooth((1, 3, 5, 64, 96), 4) + 1) * 127.5).round() / 127.5 - 1  # 8 bits, as decoded clips are
    with torch.no_grad():
        [own] = rig.family.media_cond(rig.parts, Media(clip))
        [given] = rig.family.media_cond(rig.parts, Media(clip, references=(clip[:, :, 0],)))
    assert own["first"].std() > 1e-3
    torch.testing.assert_close(own["first"], given["first"], atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="single pictures"):
        rig.family.media_cond(rig.parts, Media(clip[:, :, 0]))
    with torch.no_grad():
        [cond] = rig.family.encode_text(rig.parts, [Prompt(SHORT)])
    request = Request(cond, None, 64, 64, 2, 1.0, 0, frames=13, references=(object(),))
    with pytest.raises(UserError, match="fewer than 17 frames"):
        rig.family.call(rig.parts, request)


@pytest.mark.parametrize(
    ("case", "family", "task", "way_out"),
    [
        ("qwen_image", "qwen_image", "edit", "set task to generate"),
        ("qwen_image-edit", "qwen_image", "generate", "set task to edit"),
        ("longcat_image", "longcat_image", "edit", "set task to generate"),
        ("kandinsky5_image-edit", "kandinsky5_image", "generate", "set task to edit"),
        ("kandinsky5_video", "kandinsky5_video", "image_to_video", "set task to generate"),
        ("kandinsky5_video", "kandinsky5_image", "generate", "change `family` or `source`"),
    ],
)
def test_models_of_another_task_are_refused(
    case: str, family: str, task: str, way_out: str, checkpoint: Checkpoint
) -> None:
    source = Source(str(checkpoint(all_cases()[case])), {})
    with pytest.raises(UserError, match=way_out):
        families.build(family, {}, task).accept(source)


def test_networks_that_cannot_be_trained_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "model_index.json", {"_class_name": "Kandinsky5T2VPipeline"})
    write(tmp_path / "transformer" / "config.json", {"attention_type": "nabla"})
    with pytest.raises(UserError, match="sparse attention"):
        families.build("kandinsky5_video", {}).accept(Source(str(tmp_path), {}))
    write(tmp_path / "model_index.json", {"_class_name": "QwenImagePipeline"})
    write(tmp_path / "transformer" / "config.json", {"guidance_embeds": True})
    with pytest.raises(UserError, match="guidance embedding"):
        families.build("qwen_image", {}).accept(Source(str(tmp_path), {}))
    with pytest.raises(UserError, match="max_tokens has no effect"):
        families.build("qwen_image", {"max_tokens": 100}, "edit")


def test_pictures_to_edit_are_counted_and_batches_hold_one_size(checkpoint: Checkpoint) -> None:
    case = all_cases()["qwen_image-edit"]
    rig = Rig(case, checkpoint(case))
    picture = smooth((1, 3, 64, 64), 4)
    with pytest.raises(UserError, match=r"data\.N\.reference"):
        rig.family.encode_text(rig.parts, [Prompt(SHORT)])
    with pytest.raises(UserError, match="edits from 1 picture, but an item has 2"):
        rig.family.media_cond(rig.parts, Media(picture, references=(picture, picture)))
    square, wide = ({"embeds": torch.zeros(3, 32), "reference_0": torch.zeros(16, 8, width)} for width in (8, 12))
    with pytest.raises(UserError, match=r"train\.batch to 1"):
        rig.family.collate([square, wide])


def test_tread_cuts_only_the_pictures_table() -> None:
    tables = (torch.arange(6), torch.arange(3))
    keep = partial(cut, dims=(0,), keep=torch.tensor([0, 2]), count=6)
    of_picture, of_text = Aligned("image_rotary_emb", (0,), entry=0).changed(tables, keep)
    assert of_picture.tolist() == [0, 2]
    assert of_text.tolist() == [0, 1, 2]


def test_a_cached_text_depends_on_the_pipeline(tmp_path: Path) -> None:
    """Qwen-Image-Edit and its successor for several pictures have the same encoders, but other templates."""
    for name in ("QwenImageEditPipeline", "QwenImageEditPlusPipeline"):
        write(tmp_path / name / "model_index.json", {"_class_name": name})
        write(tmp_path / name / "text_encoder" / "config.json", {})
    first, second = (Source(str(tmp_path / n.name), {}) for n in sorted(tmp_path.iterdir()))
    assert first.fingerprint("text_encoder") != second.fingerprint("text_encoder")
    assert first.fingerprint("text_encoder") == Source(str(first.folder), {}).fingerprint("text_encoder")
