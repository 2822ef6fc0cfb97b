"""The training step, read top to bottom. Knows objectives, families and techniques by protocol only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from . import timesteps
from .adapter import Adapter
from .errors import UserError
from .extension import Stack, Step
from .family import Family
from .objective import Objective, error, reduce
from .recipe import TimestepSpec, TrainSpec
from .seeds import mix
from .types import Batch, Cond, Noised, Parts, generator


@dataclass
class Trainer:
    """One run in memory; the stack is attached. `index` is the number of optimiser steps done."""

    family: Family
    parts: Parts
    adapter: Adapter
    objective: Objective
    timesteps: TimestepSpec
    shift: Callable[[Tensor, Cond], float]
    stack: Stack
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    accelerator: Accelerator
    spec: TrainSpec
    reach: tuple[float, float] = (0.0, 1.0)
    index: int = 0
    tell: Callable[[Sequence[str], Cond, int], Cond] | None = None
    """(captions, condition, steps done) → the condition, where text encoders train or are changed."""
    encoders: Mapping[str, nn.Module] = field(default_factory=dict)
    """The text encoders that `tell` asks, by part."""

    def __post_init__(self) -> None:
        self.trained = self.adapter.parameters() + self.stack.parameters()

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's answer, in the precision of the run."""
        sight = self.parts.sight
        with self.accelerator.autocast(), sight.seeing(cond) if sight else nullcontext():
            return self.family.predict(self.parts.network, x, t, cond)

    def told(self, batch: Batch, part: int = 0) -> Batch:
        """The batch with what text encoders that do not stand still say of its captions now."""
        if self.tell is None:
            return batch
        torch.manual_seed(mix(self.spec.seed, "text", self.index, part))  # dropout
        with self.accelerator.autocast():
            return replace(batch, cond=self.tell(batch.captions, batch.cond, self.index))

    def draw(self, batch: Batch) -> Noised:
        """Noise a batch. Every item draws from its own seed: (seed, step, place of the item in the step)."""
        generators = [generator(mix(self.spec.seed, "noise", self.index, place)) for place in batch.draws]
        shift = self.shift(batch.latents, batch.cond)
        within = timesteps.unshifted(self.reach, shift)
        t = timesteps.draw(self.timesteps, generators, batch.draws, batch.of, within)
        noise = torch.stack([torch.randn(batch.latents.shape[1:], generator=g) for g in generators])
        device = batch.latents.device
        t = timesteps.shifted(t.to(device), shift)
        return self.objective.noised(batch.latents, noise.to(device), t)

    def score(self, prediction: Tensor, noised: Noised, cond: Cond) -> Tensor:
        """The elementwise error [B, ...], weighed by what the family says counts."""
        elementwise = error(prediction, noised.target, self.spec.loss, self.spec.huber_c)
        emphasis = self.family.emphasis(noised.x, cond)
        return elementwise if emphasis is None else elementwise * emphasis.to(elementwise)

    def forward_backward(self, batch: Batch, part: int) -> dict[str, Tensor]:
        """One forward pass and its gradients; the loss is weighed by the batch's share of the step's items."""
        batch = self.stack.batch(self.told(batch, part), self.index)
        step = Step(self.index, part, self.spec.seed, batch, self.draw(batch), self.predict)
        torch.manual_seed(mix(self.spec.seed, "global", self.index, part))  # dropout and whatever else draws globally
        self.stack.noised(step)
        share = len(batch.draws) / batch.of
        with self.stack.around(step):
            step.prediction = self.predict(step.noised.x, step.noised.t, batch.cond)
            own = self.family.extra(self.parts.network)
            elementwise = self.score(step.prediction, step.noised, batch.cond)
            terms = {"loss": reduce(self.stack.loss(elementwise, step), step.noised), **own, **self.stack.extra(step)}
            self.accelerator.backward(torch.stack(list(terms.values())).sum() * share)
        return {name: term.detach() * share for name, term in terms.items()}

    def step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One optimiser step over its micro-batches. Returns the loss terms, the gradient norm and the rate."""
        terms: dict[str, Tensor] = {}
        for part, batch in enumerate(batches):
            for name, value in self.forward_backward(batch, part).items():
                terms[name] = terms.get(name, 0) + value
        said: dict[str, float] = {name: float(value) for name, value in terms.items()}
        self._must_be_finite(said, batches)
        # no limit still measures the norm, which the journal shows
        norm = self.accelerator.clip_grad_norm_(self.trained, self.spec.clip or float("inf"))
        said["norm"] = float(norm) if norm is not None else 0.0
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            said["_".join(["lr", *([group["name"]] if "name" in group else [])])] = float(rate)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.index += 1
        self.stack.stepped(self.index)
        return said

    def _must_be_finite(self, said: dict[str, float], batches: Sequence[Batch]) -> None:
        if all(abs(v) < float("inf") for v in said.values()):
            return
        keys = ", ".join(sorted({k for b in batches for k in b.keys})[:4])
        raise UserError(
            f"The loss became {said['loss']} at step {self.index + 1} (items {keys}); lower train.lr, or use "
            "train.precision=fp32 if it happens at once. The last checkpoint is untouched."
        )
