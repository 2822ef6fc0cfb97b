"""Every family, task and variant: its proofs, one by one. What each proves stands in `tests.families.case`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.families.case import Case, Rig
from tests.families.cases import all_cases
from tuner import families

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = all_cases()


@pytest.mark.parametrize("number", [0, 1])
def test_call_parity(rig: Rig, number: int) -> None:
    rig.case.prove_call_parity(rig, rig.case.shapes[number])


def test_answer_parity(rig: Rig) -> None:
    rig.case.prove_answer_parity(rig)


def test_known_answer_and_encode_round_trip(rig: Rig) -> None:
    rig.case.prove_known_answer(rig)


def test_sampling_from_cached_text(rig: Rig) -> None:
    rig.case.prove_cached_sampling(rig)


def test_batch_is_its_items(rig: Rig) -> None:
    rig.case.prove_batch(rig)


def test_time_ends(rig: Rig) -> None:
    rig.case.prove_time_ends(rig)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_are_as_described(rig: Rig, checkpointing: bool) -> None:
    rig.case.prove_blocks(rig, checkpointing)


def test_adapter_round_trip(fresh: Rig, tmp_path: Path, elsewhere: Callable[..., torch.Tensor]) -> None:
    fresh.case.prove_adapter(fresh, tmp_path, elsewhere)


def test_gradients_reach_every_tensor(fresh: Rig) -> None:
    fresh.case.prove_gradients(fresh)


def test_golden_losses(fresh: Rig, request: pytest.FixtureRequest) -> None:
    """The first five losses are those in tests/golden/; `pytest --golden-write` writes them anew."""
    losses, file = fresh.case.golden(fresh), GOLDEN / f"{fresh.case.name}.txt"
    if request.config.getoption("--golden-write"):
        file.write_text("".join(f"{loss:.6f}\n" for loss in losses), encoding="utf-8")
    expected = [float(line) for line in file.read_text(encoding="utf-8").split()]
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if hasattr(c, "millions")])
def test_true_size(name: str) -> None:
    CASES[name].prove_true_size()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if c.quick else pytest.mark.families) for n, c in CASES.items()]
)
def test_overfit_and_sample(name: str, checkpoint: Callable[[Case], Path], request: pytest.FixtureRequest) -> None:
    """`pytest -m families --golden-write` keeps the figures for the README's table."""
    case = CASES[name]
    right, wrong = case.prove_overfit(Rig(case, checkpoint(case)))
    if request.config.getoption("--golden-write"):
        (GOLDEN / f"{name}.overfit.txt").write_text(f"{right:.3f} {wrong:.3f}\n", encoding="utf-8")


def test_every_family_and_task_has_its_case() -> None:
    """A family without its proofs is not supported."""
    proven = {(c.family, c.task) for c in CASES.values()}
    promised = {(name, task) for name in families.names() for task in families.get(name).pipelines}
    assert promised == proven
    assert {c.family for c in CASES.values() if hasattr(c, "millions")} == set(families.names())
