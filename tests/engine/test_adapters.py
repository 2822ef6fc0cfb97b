"""What trains: the LoRA's promises to techniques, exports and checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tuner import adapters, families
from tuner.adapters.lora import Lora
from tuner.errors import UserError
from tuner.recipe import FullSpec, LoraSpec
from tuner.source import Source
from tuner.types import Prompt


def attached(tiny, family: str, spec: LoraSpec | FullSpec):
    """(adapter, a call of its network that returns the answer)."""
    made = families.get(family)()
    source = Source(str(tiny(family)), {})
    parts = made.load(source, (made.denoiser, *made.text_parts), torch.float32)
    torch.manual_seed(0)
    adapter = adapters.build(spec, made, parts)
    with torch.no_grad():
        cond = made.encode_text(parts, [Prompt("a cat")])[0]
    if family == "sdxl":
        cond |= {"time_ids": torch.tensor([64.0, 64, 0, 0, 64, 64])}
    channels = parts.network.config.in_channels // (4 if family == "flux1" else 1)
    x, t = torch.randn(1, channels, 8, 8), torch.tensor([0.5])

    def answer() -> torch.Tensor:
        with torch.no_grad():
            return made.predict(parts.network, x, t, made.collate([cond]))

    return adapter, answer


@pytest.mark.parametrize("family", ["flux1", "sd1", "sdxl"])
def test_a_fresh_lora_changes_nothing_and_a_trained_one_scales(tiny, family: str) -> None:
    adapter, answer = attached(tiny, family, LoraSpec(rank=4, alpha=2))
    fresh = answer()
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    whole = answer()
    assert (whole - fresh).abs().max() > 1e-3
    with adapter.disabled():
        assert answer().equal(fresh)
    with adapter.scaled(0.0):
        torch.testing.assert_close(answer(), fresh, rtol=0, atol=1e-6)
    with adapter.scaled(-1.0):
        assert not torch.allclose(answer(), whole, atol=1e-3)
    assert answer().equal(whole)


def test_strength_is_alpha_over_rank(tiny) -> None:
    """Twice the alpha is the same as twice the strength."""
    small, answer_small = attached(tiny, "flux1", LoraSpec(rank=4, alpha=2))
    large, answer_large = attached(tiny, "flux1", LoraSpec(rank=4, alpha=4))
    torch.manual_seed(1)
    state = {k: torch.randn_like(v) * 0.1 for k, v in small.state_dict().items()}
    small.load_state_dict(state)
    large.load_state_dict(state)
    assert (answer_small() - answer_large()).abs().max() > 1e-3
    with small.scaled(2.0):
        torch.testing.assert_close(answer_small(), answer_large(), rtol=0, atol=1e-6)


def test_state_of_another_shape_is_not_taken(tiny) -> None:
    adapter, _ = attached(tiny, "flux1", LoraSpec(rank=4))
    state = adapter.state_dict()
    state.pop(next(iter(state)))
    with pytest.raises(AssertionError, match="differ in"):
        adapter.load_state_dict(state)


def test_targets_by_ending_and_by_preset(tiny) -> None:
    few, _ = attached(tiny, "flux1", LoraSpec(rank=2, targets=["attn.to_q"]))
    assert isinstance(few, Lora) and all("attn.to_q" in n for n in few.names)
    assert len(few.names) < len(attached(tiny, "flux1", LoraSpec(rank=2))[0].names)
    with pytest.raises(UserError, match=r"adapter\.targets: nope matches no layer; layers end in"):
        attached(tiny, "flux1", LoraSpec(rank=2, targets=["attn.to_q", "nope"]))


def test_full_rank_has_no_base_to_fall_back_on(tiny, tmp_path: Path) -> None:
    adapter, _ = attached(tiny, "sd1", FullSpec())
    assert sum(p.numel() for p in adapter.parameters()) == sum(v.numel() for v in adapter.state_dict().values())
    with pytest.raises(UserError, match=r"adapter\.kind=lora"), adapter.disabled():
        pass
    with pytest.raises(UserError, match=r"adapter\.kind=lora"), adapter.scaled(2.0):
        pass
