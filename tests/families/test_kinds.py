"""Which kinds of adapter each family carries, proven on its tiny checkpoint: the capability table is what runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.families.case import SHORT, Rig
from tuner import adapters, recipe
from tuner.adapters import KINDS

VARIANTS = {
    f"{kind} {title}": {"kind": kind, **settings, **({} if kind == "full" else {"rank": 2})}
    for kind in ("lora", "peft")
    for title, settings in {"": {}, **KINDS[kind].variants}.items()
    if settings.get("algorithm") != "ia3" and (kind, title) != ("peft", "")
} | {"peft IA3": {"kind": "peft", "algorithm": "ia3"}}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_family_carries_what_the_table_says(rig: Rig, variant: str) -> None:
    """Either it is refused with a reason, or it begins as the base and has a gradient."""
    made = recipe.parse({"family": rig.case.family, "source": "any", "adapter": VARIANTS[variant],
                         "data": [{"path": "any"}]})  # fmt: skip
    if adapters.refuses(rig.family, made):
        return
    kept: Any = rig.parts.network
    shape = rig.case.shapes[0]
    x, t, cond = rig.latent(shape, 1), torch.tensor([0.5]), rig.cond([SHORT], shape)
    rig.parts.components[rig.family.denoiser] = copy.deepcopy(kept)
    try:
        rig.family.ready(rig.parts.network)
        with torch.no_grad():
            base = rig.family.predict(rig.parts.network, x, t, cond)
        torch.manual_seed(0)
        adapter = adapters.build(made.adapter, rig.family, rig.parts)
        out = rig.family.predict(rig.parts.network, x, t, cond)
        assert (out - base).abs().max() < 1e-4 * max(1.0, float(base.abs().max()))
        out.square().mean().backward()
        assert any(p.grad is not None and p.grad.any() for p in adapter.parameters())
        layers: Any = adapter
        assert {layer.module for layer in layers.layers()} == set(layers.modules)
    finally:
        rig.parts.components[rig.family.denoiser] = kept
