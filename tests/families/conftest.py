"""Tiny checkpoints, built once per session, and the other process that loads adapters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families.case import Case, Rig
from tests.families.cases import all_cases
from tuner import families

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """checkpoint(case) → folder of its tiny checkpoint, built once and shared: never change its files."""
    built: dict[str, Path] = {}

    def get(case: Case) -> Path:
        if case.name not in built:
            built[case.name] = tmp_path_factory.mktemp(case.name)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                case.build(built[case.name])
        return built[case.name]

    return get


@pytest.fixture(scope="module", params=list(all_cases()))
def case(request: pytest.FixtureRequest) -> Case:
    """Every family, task and variant."""
    return all_cases()[request.param]


@pytest.fixture(scope="module")
def rig(case: Case, checkpoint: Callable[[Case], Path]) -> Rig:
    """The case's models, shared by proofs that leave them as they are."""
    return Rig(case, checkpoint(case))


@pytest.fixture
def fresh(case: Case, checkpoint: Callable[[Case], Path]) -> Rig:
    """The case's models, of this test alone: for proofs that train."""
    return Rig(case, checkpoint(case))


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Tensor]]:
    """elsewhere(case name, folder, adapter file, arguments) → what plain diffusers draws in its own process."""
    running: list[subprocess.Popen[str]] = []
    out = tmp_path_factory.mktemp("elsewhere") / "out.pt"

    def draw(name: str, folder: Path, adapter: Path, arguments: dict[str, Any]) -> Tensor:
        if not running or running[0].poll() is not None:
            command = [sys.executable, "-m", "tests.families.elsewhere"]
            root = Path(__file__).parents[2]
            running[:] = [
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=dict(os.environ)
                )
            ]
        process, case = running[0], all_cases()[name]
        assert process.stdin
        assert process.stdout
        part = families.get(case.family)(families.get(case.family).Options(**case.options), case.task).denoiser
        request = {
            "case": name, "folder": str(folder), "part": part, "adapter": str(adapter), "arguments": arguments,
            "out": str(out),
        }  # fmt: skip
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        while (line := process.stdout.readline()).strip() != "done":
            assert line, f"the other process died with {process.wait()}"
        return torch.load(out)

    yield draw
    for process in running:
        process.kill()
