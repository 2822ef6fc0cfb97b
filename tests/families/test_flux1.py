"""What is particular to FLUX.1: the shift of t with the size of the picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.families.case import LONG, SHORT, Case, Rig, Shape
from tests.families.cases import all_cases
from tuner import families
from tuner.errors import UserError
from tuner.timesteps import shifted


def test_shift_golden() -> None:
    """FLUX.1's published values for 1024² and 512²; constant beyond; off where the model says so."""
    family, dynamic = families.get("flux1")(), {"use_dynamic_shifting": True}
    shift = {side: family.shift(torch.zeros(1, 16, side // 8, side // 8), {}, dynamic) for side in (512, 1024, 2048)}
    assert shift[1024] == pytest.approx(3.158193, abs=1e-6)
    assert shift[512] == pytest.approx(1.877611, abs=1e-6)
    assert shift[2048] == shift[1024]
    assert family.shift(torch.zeros(1, 16, 128, 128), {}, {"use_dynamic_shifting": False, "shift": 1.0}) == 1.0


@pytest.mark.parametrize("name", ["flux1", "flux1-schnell"])
def test_shift_is_the_schedulers(checkpoint: Callable[[Case], Path], name: str) -> None:
    """Our shift moves the pipeline's own unshifted times to the times it samples at."""
    case = all_cases()[name]
    rig, shape = Rig(case, checkpoint(case)), Shape(96, 64)
    case.run(rig.official, [SHORT], shape, num_inference_steps=5, output_type="latent")
    s = rig.family.shift(rig.latent(shape, 1), {}, rig.source.config("scheduler"))
    expected = shifted(torch.linspace(1, 1 / 5, 5), s)
    torch.testing.assert_close(rig.official.scheduler.timesteps / 1000, expected, atol=1e-5, rtol=1e-5)


def test_only_t5_counts(checkpoint: Callable[[Case], Path]) -> None:
    """CLIP's limit is not told: only its pooled summary is used."""
    case = all_cases()["flux1"]
    rig = Rig(case, checkpoint(case))
    tokenizers = {p: rig.parts[p] for p in ("tokenizer", "tokenizer_2")}
    for caption in (SHORT, LONG * 9):
        assert rig.family.token_counts(tokenizers, caption) == [
            ("tokenizer_2", len(tokenizers["tokenizer_2"](caption).input_ids), 32)
        ]


def test_snr_weights_are_refused(checkpoint: Callable[[Case], Path]) -> None:
    case = all_cases()["flux1"]
    with pytest.raises(UserError, match=r"train.snr_gamma has no meaning for flux1; remove it\."):
        Rig(case, checkpoint(case)).family.objective(None, 5.0)  # type: ignore[arg-type]
