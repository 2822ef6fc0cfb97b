"""An adapter of each family given to every other: refused or listed in one sentence, taken whole by its kin alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.families.cases import all_cases
from tests.formats.test_native import NETWORKS, published
from tuner import families
from tuner.errors import UserError
from tuner.formats import dialects, write
from tuner.formats.file import File
from tuner.formats.fuse import no_weights
from tuner.formats.layers import Layer
from tuner.formats.places import Places

pytestmark = pytest.mark.families
FIRST = {all_cases()[name].family: name for name in reversed(NETWORKS)}
"""Family → the first of its networks."""
KIN = {frozenset(pair) for pair in (("sdxl", "kolors"), ("flux1", "chroma"), ("flux1", "longcat_image"))}
"""Whose layers have the same names and sizes, so that only the header of a file tells them apart."""


def places(family: str) -> Places:
    net = published(FIRST[family])
    part = families.get(family)().denoiser
    return Places(net.names, {part: {n: (rows, columns) for n, (rows, columns, _) in net.layers.items()}})


def some(family: str, own: Places) -> list[Layer]:
    """A LoRA on layers from the first block to the last, as every preset reaches them."""
    table, part = own.networks[own.denoiser], own.denoiser
    reached = published(FIRST[family]).reached
    return [
        Layer(part, m, "lora", {"down": torch.ones(2, table[m][1]), "up": torch.ones(table[m][0], 2)}, 2.0)
        for m in reached[:: max(1, len(reached) // 16)]
    ]


@pytest.mark.parametrize("format", ["comfyui", "kohya", "lycoris"])
def test_no_family_takes_anothers_adapter_in_silence(format: str) -> None:
    all_places = {family: places(family) for family in FIRST}
    taken = set()
    for family, own in all_places.items():
        if format == "kohya" and not own.names.kohya:
            continue
        tensors = write.WRITERS[format](some(family, own), own, no_weights).tensors
        file = File(Path("a.safetensors"), tensors, {})
        for other, theirs in all_places.items():
            if other == family:
                continue
            try:
                contents = dialects.matched(dialects.understood(file, theirs), file.path, other)
            except UserError as error:
                assert "a.safetensors" in str(error) and "\n" not in str(error)
                continue
            read = {k for x in contents.layers for k in (x.module,)}
            assert read and set(contents.leftover) <= set(tensors)
            if contents.leftover:
                assert dialects.told(contents, file.path)
            else:
                taken.add(frozenset((family, other)))
    print(format, sorted(map(sorted, taken)))
    assert taken <= KIN
