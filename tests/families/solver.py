"""Cases whose scheduler is a solver with flow sigmas (DPM-Solver, UniPC)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.families.case import Case, Rig, Shape


class Solver(Case):
    """Such a solver rounds the time that it tells the network down to whole steps, but not its own sigma."""

    told = False

    def time(self, rig: Rig, i: int) -> Tensor:
        scheduler: Any = rig.official.scheduler
        return scheduler.timesteps[i] / 1000 if self.told else scheduler.sigmas[i].float()

    def prove_call_parity(self, rig: Rig, shape: Shape) -> None:
        self.told = True
        try:
            super().prove_call_parity(rig, shape)
        finally:
            self.told = False
