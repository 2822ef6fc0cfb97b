"""Sound: what captions and lyrics say, the spectrogram, clips with and without sound, samples as a run saves them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.families.case import LONG, SHORT, Case, Rig, Shape
from tests.families.cases import all_cases
from tests.families.cases.ace_step import LYRICS
from tests.families.cases.ltx2 import BINS, FPS, clip, heard
from tuner import extensions, families, sample
from tuner.errors import UserError
from tuner.families._mel import log_mel
from tuner.families.ace_step import described
from tuner.families.ltx2 import split
from tuner.recipe import ExtensionSpec, Recipe
from tuner.source import Source
from tuner.types import Media, Prompt, generator

CASES = all_cases()
Checkpoint = Callable[[Case], Path]


def test_lines_of_a_caption_become_tempo_key_and_language() -> None:
    text, metas = described("slow jazz\nBPM: 72 \nkeyscale: F# minor\nlanguage: ja\nwith bpm: 4 in a sentence")
    assert text == "slow jazz\nwith bpm: 4 in a sentence"
    assert metas == {"bpm": 72, "keyscale": "F# minor", "vocal_language": "ja"}
    assert described(" as it is \n") == (" as it is \n", {})
    with pytest.raises(UserError, match="bpm: 120"):
        described("jazz\nbpm: fast")


def test_lyrics_seconds_and_dropped_captions(checkpoint: Checkpoint) -> None:
    rig = rig_of("ace_step", checkpoint)

    def told(prompt: Prompt) -> torch.Tensor:
        with torch.no_grad():
            return rig.family.encode_text(rig.parts, [prompt])[0]["embeds"]

    known = told(Prompt(LONG, lyrics=LYRICS, seconds=2.0))
    assert known.shape == told(Prompt(LONG, lyrics=LYRICS, seconds=9.0)).shape
    assert not torch.allclose(known, told(Prompt(LONG, lyrics=LYRICS, seconds=9.0)))
    assert len(told(Prompt(LONG, seconds=2.0))) < len(known)
    assert told(Prompt("", lyrics=LYRICS, seconds=2.0)).equal(rig.parts["condition_encoder"].null_condition_emb[0])
    dropped = rig.family.encode_text(rig.parts, [Prompt(""), Prompt("", seconds=2.0)])
    assert len({d["embeds"].data_ptr() for d in dropped}) == 2, "a cache refuses tensors that share memory"
    with pytest.raises(UserError, match="shorten"):
        told(Prompt(LONG, lyrics="la " * 800, seconds=2.0))


@pytest.mark.long
def test_long_sound_is_encoded_in_parts_to_the_same_latents(checkpoint: Checkpoint) -> None:
    rig = rig_of("ace_step", checkpoint)
    sound = torch.randn(2, 2, 33 * 48000, generator=generator(1)) * 0.2
    with torch.no_grad():
        parts = rig.family.encode_media(rig.parts, Media(sound=sound))
        whole = torch.cat([rig.official.vae.encode(one[None]).latent_dist.mode() for one in sound])
    assert parts.shape == (2, 8, 33 * 25)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


def test_a_sample_of_sound_has_its_rate(checkpoint: Checkpoint, tmp_path: Path) -> None:
    case = CASES["ace_step"]
    rig = Rig(case, checkpoint(case))
    drawn = sample.draw(rig.family, rig.parts, case.request(rig, LONG, case.shapes[0], 2))
    assert drawn.rate == 48000
    assert drawn.sound is not None
    assert drawn.sound.shape == (2, 32 * 1920)
    assert sample.save(drawn, tmp_path / "step").suffix == ".wav"


def rig_of(name: str, checkpoint: Checkpoint) -> Rig:
    return Rig(CASES[name], checkpoint(CASES[name]))


def test_the_spectrogram_is_that_of_another_implementation() -> None:
    sound = torch.randn(2, 2, 3200, generator=generator(1)) * 0.3
    ours = log_mel(sound, 16000, 160, BINS)
    assert ours.shape == (2, 2, 21, BINS)
    torch.testing.assert_close(ours, heard(sound), atol=1e-4, rtol=1e-4)
    assert (log_mel(torch.zeros(1, 2, 3200), 16000, 160, 64) == torch.tensor(1e-5).log()).all()


@pytest.mark.parametrize("frames", [1, 9])
def test_without_sound_the_clip_is_trained_alone(frames: int, checkpoint: Checkpoint) -> None:
    """What the network answers for the clip is then what it answers whatever it might hear, kept apart."""
    rig = rig_of("ltx2", checkpoint)
    shape = Shape(64, 64, frames)
    media = Media(clip(shape, 2)[:, :, 0] if frames == 1 else clip(shape, 2), fps=FPS)
    with torch.no_grad():
        x = rig.family.encode_media(rig.parts, media)
        texts = rig.family.encode_text(rig.parts, [Prompt(SHORT), Prompt(LONG)])
        conds = rig.family.media_cond(rig.parts, media)
        cond = rig.family.collate([{**t, **m} for t, m in zip(texts, conds, strict=True)])
        count = ((frames - 1) // 8 + 1) * 4
        assert x.shape == (2, 1, count * 8)
        assert rig.family.emphasis(x, cond) is None
        t = torch.tensor([0.3, 0.8])
        ours = rig.family.predict(rig.parts.network, x, t, cond)
        picture, _ = rig.denoiser(
            hidden_states=x.view(2, count, 8),
            audio_hidden_states=torch.randn(2, 5, 8, generator=generator(2)),
            encoder_hidden_states=cond["embeds"],
            audio_encoder_hidden_states=cond["audio_embeds"],
            timestep=t * 1000,
            sigma=t * 1000,
            encoder_attention_mask=cond["mask"],
            audio_encoder_attention_mask=cond["mask"],
            num_frames=count // 4,
            height=2,
            width=2,
            fps=FPS,
            audio_num_frames=5,
            isolate_modalities=True,
            use_cross_timestep=True,
            return_dict=False,
        )
    torch.testing.assert_close(ours.view(2, count, 8), picture, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "weight"), [("ltx2", 1.0), ("ltx2", 0.25), ("ltx2-i2v", 1.0), ("ltx2", 0.0)])
def test_the_loss_is_the_mean_over_the_clip_and_over_the_sound(
    name: str, weight: float, checkpoint: Checkpoint
) -> None:
    rig = rig_of(name, checkpoint)
    case, shape = rig.case, rig.case.shapes[0]
    family = families.build("ltx2", {"max_tokens": 32, "sound_weight": weight}, case.task)
    x = rig.latent(shape, 2)
    elementwise = torch.rand(x.shape, generator=generator(3))
    weights = family.emphasis(x, rig.cond([SHORT, LONG], shape))
    assert weights is not None
    picture, sound = split(elementwise, 8, 12, 8)
    seen = picture[:, 4:] if case.task == "image_to_video" else picture  # the first frame is given
    expected = (seen.mean((1, 2)) + weight * sound.mean((1, 2))) / (1 + weight)
    torch.testing.assert_close((elementwise * weights).mean((1, 2)), expected)


def test_a_sample_of_a_clip_has_its_sound(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rig = rig_of("ltx2", checkpoint)
    drawn = sample.draw(rig.family, rig.parts, rig.case.request(rig, LONG, rig.case.shapes[0], 2))
    assert drawn.frames is not None
    assert drawn.frames.shape == (9, 64, 64, 3)
    assert drawn.sound is not None
    assert drawn.rate == 24000
    assert abs(drawn.sound.shape[-1] / drawn.rate - 9 / FPS) < 0.05
    assert sample.save(drawn, tmp_path / "step").suffix == ".mp4"


def test_masks_and_distilled_models_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rig = rig_of("ltx2", checkpoint)
    recipe = Recipe.model_validate(
        {"family": "ltx2", "source": "2.0", "data": [{"path": "clips", "mask": "masks"}], "train": {"steps": 1}}
    )
    built = extensions.build(ExtensionSpec(kind="masked_loss"))
    assert "latents of ltx2" in (built.refuses(rig.family, recipe) or "")
    folder = tmp_path / "ltx2-distilled"
    shutil.copytree(checkpoint(CASES["ltx2"]), folder)
    with pytest.raises(UserError, match="distilled"):
        families.build("ltx2", {}).accept(Source(str(folder), {}))
