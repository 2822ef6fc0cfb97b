"""Sound: what a caption says in its lines, lyrics that are too long, samples as a run saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.families.case import LONG, Case, Rig
from tests.families.cases import all_cases
from tests.families.cases.ace_step import LYRICS
from tuner import sample
from tuner.errors import UserError
from tuner.families.ace_step import described
from tuner.types import Prompt

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
    rig = Rig(CASES["ace_step"], checkpoint(CASES["ace_step"]))

    def told(prompt: Prompt) -> torch.Tensor:
        with torch.no_grad():
            return rig.family.encode_text(rig.parts, [prompt])[0]["embeds"]

    known = told(Prompt(LONG, lyrics=LYRICS, seconds=2.0))
    assert known.shape == told(Prompt(LONG, lyrics=LYRICS, seconds=9.0)).shape
    assert not torch.allclose(known, told(Prompt(LONG, lyrics=LYRICS, seconds=9.0)))
    assert len(told(Prompt(LONG, seconds=2.0))) < len(known)
    assert told(Prompt("", lyrics=LYRICS, seconds=2.0)).equal(rig.parts["condition_encoder"].null_condition_emb[0])
    with pytest.raises(UserError, match="shorten"):
        told(Prompt(LONG, lyrics="la " * 800, seconds=2.0))


def test_a_sample_of_sound_has_its_rate(checkpoint: Checkpoint, tmp_path: Path) -> None:
    case = CASES["ace_step"]
    rig = Rig(case, checkpoint(case))
    drawn = sample.draw(rig.family, rig.parts, case.request(rig, LONG, case.shapes[0], 2))
    assert drawn.rate == 48000
    assert drawn.sound is not None
    assert drawn.sound.shape == (2, 32 * 1920)
    assert sample.save(drawn, tmp_path / "step").suffix == ".wav"
