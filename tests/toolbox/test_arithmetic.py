"""Resizing, merging and decomposing keep exactly what they say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.toolbox import made
from tuner.errors import UserError
from tuner.formats.layers import Layer
from tuner.toolbox.kept import summary
from tuner.toolbox.lowrank import Cut, best, factors, norm, of_matrix, ranked
from tuner.toolbox.merge import decomposed, merge
from tuner.toolbox.resize import resize

SEEDS, RANKS = st.integers(0, 1000), st.integers(1, 6)
SHAPES = st.sampled_from(made.SHAPES)
STRENGTHS = st.floats(-2, 2, allow_nan=False).map(lambda x: round(x, 3))
FAST = settings(max_examples=25, deadline=None)


def optimal(delta: torch.Tensor, rank: int) -> float:
    """Eckart and Young: the norm of what the best matrix of this rank cannot hold."""
    return torch.linalg.svdvals(delta.flatten(1).double())[rank:].norm().item()


@given(SHAPES, RANKS, st.integers(1, 8), SEEDS, st.sampled_from([None, 1.0, -3.0, 8.0]))
@FAST
def test_a_resized_lora_is_the_best_of_its_rank(shape, rank, wanted, seed, alpha) -> None:
    layer = made.lora("block.0", shape, rank, seed, alpha)
    (new,), (kept,) = resize([layer], Cut(rank=wanted))
    assert new.rank == min(wanted, rank, shape[0])
    assert new.tensors["up"].shape[2:] == torch.Size([1] * (len(shape) - 2))
    missing = (new.delta() - layer.delta()).double().norm().item()
    size = layer.delta().double().norm().item()
    assert missing == pytest.approx(optimal(layer.delta(), new.rank), abs=2e-6 * size)
    assert kept.missing == pytest.approx(missing, abs=2e-6 * size)
    assert kept.size == pytest.approx(size, rel=1e-6)
    if wanted >= rank:
        made.close(new.delta(), layer.delta())


@given(SHAPES, SEEDS, st.floats(0.1, 1.0))
@FAST
def test_energy_takes_the_fewest_directions_that_hold_it(shape, seed, share) -> None:
    layer = made.lora("block.0", shape, 6, seed)
    (new,), (kept,) = resize([layer], Cut(energy=share))
    assert 1 - kept.error**2 >= share - 1e-6
    values = torch.linalg.svdvals(layer.delta().flatten(1).double()).square()
    if new.rank > 1:
        assert values[: new.rank - 1].sum() / values.sum() < share + 1e-9
    (few,), _ = resize([layer], Cut(energy=1.0, most=2))
    assert few.rank == 2


def test_resizing_a_tucker_convolution_and_a_dora_keeps_what_lies_around_the_product() -> None:
    middle = made.tucker("conv", (6, 5, 3, 3), 4)
    (new,), _ = resize([middle], Cut(rank=6))
    made.close(new.delta(), middle.delta())
    layer, weight = made.dora("block.0", (12, 8), 4), made.rand(12, 8, seed=9)
    (new,), _ = resize([layer], Cut(rank=8))
    made.close(new.delta(weight), layer.delta(weight), 1e-5)
    with_bias = Layer("unet", "a", "lora", {**layer.tensors, "bias": made.rand(12, seed=3)}, 2.0)
    (new,), _ = resize([with_bias], Cut(rank=3))
    made.close(new.bias(), with_bias.bias())


@given(SEEDS, st.integers(1, 5), st.sampled_from([(12, 8), (8, 20)]))
@FAST
def test_other_kinds_decompose_without_their_matrix(seed, rank, shape) -> None:
    for layer in (
        made.loha("a", shape, rank, seed), made.lokr("a", shape, 0, seed), made.lokr("a", shape, rank, seed),
        made.lokr("a", (6, 4, 3, 3), rank, seed),
    ):  # fmt: skip
        found, dense = ranked(layer), layer.delta().flatten(1)
        made.close((found.up @ found.down).float(), dense, 1e-5)
        values = torch.linalg.svdvals(dense.double())
        count = min(len(values), len(found.values))
        torch.testing.assert_close(found.values[:count], values[:count], atol=1e-5 * values[0].item(), rtol=0)
        assert norm(layer) == pytest.approx(dense.norm().item(), rel=1e-5)


@given(st.sampled_from([(7, 7), (12, 5), (5, 12), (1, 9)]), SEEDS, st.integers(1, 7), st.booleans())
@FAST
def test_a_matrix_is_decomposed_exactly(shape, seed, rank, flat) -> None:
    matrix = made.rand(*shape, seed=seed)
    if flat:  # far fewer directions than it could have
        matrix = matrix[:, :1] @ matrix[:1]
    found = of_matrix(matrix)
    made.close((found.up @ found.down).float(), matrix)
    up, down = found.cut(rank)
    assert (up @ down - matrix).double().norm().item() == pytest.approx(optimal(matrix, rank), abs=1e-5)


@given(SHAPES, st.lists(st.tuples(RANKS, SEEDS, STRENGTHS), min_size=1, max_size=4))
@FAST
def test_concatenation_is_the_weighted_sum(shape, several) -> None:
    layers = [(made.lora("block.0", shape, rank, seed, 3.0), s) for rank, seed, s in several]
    (new,), (kept,) = merge([([layer], s) for layer, s in layers], "concat")
    assert new.rank == sum(rank for rank, _, _ in several)
    wanted = sum((s * layer.delta().double() for layer, s in layers), torch.zeros(shape, dtype=torch.float64))
    scale = max(layer.delta().abs().max().item() for layer, _ in layers)
    assert (new.delta() - wanted).abs().max() <= 1e-6 * 4 * scale
    assert kept.missing <= 1e-5 * scale * math.prod(shape) ** 0.5


def test_a_merge_covers_all_modules_and_parts_and_takes_adapters_away() -> None:
    a = [made.lora("block.0", (12, 8), 2, 0), made.lora("block.1", (12, 8), 2, 1)]
    text = Layer("text_encoder", "layers.0", "lora", made.lora("x", (8, 20), 3, 5).tensors)
    b = [made.lora("block.1", (12, 8), 3, 2), text]
    new, _ = merge([(a, 1.0), (b, -0.5)], "concat")
    assert [(n.part, n.module) for n in new] == [
        ("transformer", "block.0"), ("transformer", "block.1"), ("text_encoder", "layers.0")
    ]  # fmt: skip
    made.close(new[1].delta(), a[1].delta() - 0.5 * b[0].delta())
    made.close(new[2].delta(), -0.5 * text.delta())
    nothing, _ = merge([(a, 1.0), (a, -1.0)], "concat")
    assert nothing[0].delta().abs().max() < 1e-6


@pytest.mark.parametrize("method", ["svd", "dense"])
def test_mixed_kinds_are_added_densely_and_the_error_is_stated(method: str) -> None:
    weight = made.rand(12, 8, seed=42)
    several = [
        made.lora("m", (12, 8), 2),
        made.loha("m", (12, 8), 2),
        made.lokr("m", (12, 8)),
        made.dora("m", (12, 8), 2),
    ]
    strengths = [0.7, -0.5, 1.0, 2.0]
    inputs = [([layer], s) for layer, s in zip(several, strengths, strict=True)]
    wanted = sum(s * layer.delta(weight) for layer, s in zip(several, strengths, strict=True))
    (new,), (kept,) = merge(inputs, method, Cut(rank=8), lambda _: weight)  # pyrefly: ignore
    made.close(new.delta(), wanted, 1e-5)
    if method == "svd":
        (new,), (kept,) = merge(inputs, "svd", Cut(rank=3), lambda _: weight)
        assert kept.missing == pytest.approx(optimal(wanted, 3), rel=1e-4)
        assert kept.error == pytest.approx((new.delta() - wanted).norm().item() / wanted.norm().item(), rel=1e-4)
    with pytest.raises(UserError, match="depends on the base's weight; give the model with --model"):
        merge(inputs, method, Cut(rank=3))  # pyrefly: ignore
    with pytest.raises(UserError, match="changed by DoRA and LoRA and loha and lokr, and --method concat"):
        merge(inputs, "concat")


def test_norms_and_lonely_layers_are_merged_in_their_kind() -> None:
    norm_ = Layer("unet", "n", "diff", {"weight": made.rand(8, seed=1), "bias": made.rand(8, seed=2)})
    lonely = made.lokr("m", (12, 8))
    new, _ = merge([([norm_, lonely], 0.5), ([norm_], -2.0)], "concat")
    made.close(new[0].delta(), -1.5 * norm_.delta())
    made.close(new[0].bias(), -1.5 * norm_.bias())
    assert new[1].kind == "lokr"
    made.close(new[1].delta(), 0.5 * lonely.delta())
    for kind in ("svd", "dense"):
        (same,), _ = merge([([norm_], 0.5)], kind, Cut(rank=1))  # pyrefly: ignore
        assert same.kind == "diff"
        made.close(same.delta(), 0.5 * norm_.delta())
    with pytest.raises(UserError, match="is DoRA, whose files hold no strength"):
        merge([([made.dora("m", (12, 8), 2)], 0.5)], "concat")
    (kept,), _ = merge([([made.dora("m", (12, 8), 2)], 1.0)], "concat")
    assert "magnitude" in kept.tensors


def test_adapters_of_different_models_are_not_added() -> None:
    with pytest.raises(UserError, match=r"has the shapes \[12, 8\] and \[8, 20\] in these files"):
        merge([([made.lora("m", (12, 8), 2)], 1.0), ([made.lora("m", (8, 20), 2)], 1.0)], "concat")
    with pytest.raises(UserError, match="made for different models"):
        merge([([made.lokr("m", (12, 8))], 1.0), ([made.lora("m", (8, 20), 2)], 1.0)], "dense")


def test_any_kind_becomes_a_plain_lora_with_a_stated_residual() -> None:
    layer = made.lokr("m", (12, 8))
    new, kept = decomposed(layer, Cut(rank=3), lambda _: None, torch.float32)
    assert new.kind == "lora"
    assert factors(new) is not None
    assert (new.delta() - layer.delta()).norm().item() == pytest.approx(optimal(layer.delta(), 3), rel=1e-4)
    assert summary([kept])["error"] == pytest.approx(kept.missing / layer.delta().norm().item(), rel=1e-4)


def test_rounding_is_part_of_the_error() -> None:
    layer = made.lora("m", (12, 8), 4)
    _, (fine,) = resize([layer], Cut(rank=4))
    (coarse,), (kept,) = resize([layer], Cut(rank=4), torch.bfloat16)
    assert fine.error < 1e-6
    assert coarse.tensors["up"].dtype == torch.bfloat16
    assert 1e-4 < kept.error < 1e-2


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"rank": 0}, "--rank is 0; it must be at least 1"),
        ({"rank": -3}, "--rank is -3"),
        ({}, "either --rank or --energy"),
        ({"rank": 2, "energy": 0.5}, "either --rank or --energy"),
        ({"energy": 0.0}, "--energy is 0; it is a share"),
        ({"energy": 95.0}, "--energy is 95; it is a share"),
        ({"energy": 0.9, "most": 0}, "--max-rank is 0"),
        ({"rank": 4, "most": 2}, "--max-rank belongs to --energy"),
    ],
)
def test_senseless_cuts_are_refused(settings_, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Cut(**settings_)


def test_what_has_no_rank_is_not_resized() -> None:
    with pytest.raises(UserError, match="is a lokr, which has no rank to cut; turn the file into a plain LoRA"):
        resize([made.lokr("m", (12, 8))], Cut(rank=2))
    zero = Layer("transformer", "m", "lora", {"down": torch.zeros(4, 8), "up": torch.zeros(12, 4)})
    (new,), (kept,) = resize([zero], Cut(energy=0.9))
    assert new.rank == 1
    assert not new.delta().any()
    assert kept.error == 0.0


SPECTRA = {"noise": lambda i: torch.ones_like(i), "falling": lambda i: 1 / (1 + i), "steep": lambda i: 0.5**i}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(320, 480), (480, 320)])
def test_the_strongest_directions_alone_are_as_good_as_the_whole_decomposition(spectrum, shape) -> None:
    """Sought from a random start; never better than the best, hardly worse, and the same each time."""
    if spectrum == "noise":
        matrix = made.rand(*shape, seed=3)
    else:
        left, right = (torch.linalg.qr(made.rand(n, 320, seed=n).double()).Q for n in shape)
        matrix = (left * SPECTRA[spectrum](torch.arange(320.0).double())) @ right.T
    before = torch.get_rng_state()
    up, down = best(matrix, Cut(rank=8))
    missing = (matrix.double() - up.double() @ down.double()).norm().item()
    lowest = optimal(matrix, 8)
    assert up.shape == (shape[0], 8) and down.shape == (8, shape[1])
    assert lowest * (1 - 1e-6) <= missing <= lowest * 1.01 + 1e-6 * matrix.norm().item()
    again = best(matrix, Cut(rank=8))
    assert again[0].equal(up) and again[1].equal(down)
    assert torch.get_rng_state().equal(before)


def test_energy_up_to_a_rank_counts_the_energy_of_the_whole_matrix() -> None:
    left, right = (torch.linalg.qr(made.rand(n, 320, seed=n).double()).Q for n in (320, 480))
    values = 1 / (1 + torch.arange(320.0).double())
    matrix = (left * values) @ right.T
    shares = values.square().cumsum(0) / values.square().sum()
    for share in (0.5, 0.9, 0.95):
        wanted = int((shares < share).sum()) + 1
        assert best(matrix, Cut(energy=share, most=24))[0].shape[1] == min(wanted, 24)
    assert best(matrix, Cut(energy=1.0, most=24))[0].shape[1] == 24
