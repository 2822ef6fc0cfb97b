"""Update rules and the course of the learning rate.

Every rule is bought (torch, bitsandbytes, prodigyopt, schedulefree) and imported only when a recipe names it.
The learning rate of a run is lr * factor(step); see `factor`.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .errors import Problem, stop_on_errors
from .recipe import TrainSpec

# Usual learning rates for adapters (LoRA); full fine-tuning wants about a tenth. Sources, per rule:
# adamw, adamw8bit: the LoRA examples of diffusers. prodigy: finds its own step size, lr only scales it (its README).
# adafactor: torch scales the step by max(1e-3, RMS of the tensor), so that 1e-2, torch's default and the paper's bound
# (Shazeer & Stern 2018), moves a LoRA about as far as AdamW's 1e-4; with 1e-4 a LoRA hardly moves at all.
# lion: a third of AdamW's, since every entry moves by a full lr (Chen et al. 2023: 3 to 10 times smaller).
# schedulefree: AdamW's value; the authors find the best one 1 to 10 times AdamW's (Defazio et al. 2024).
_LR = {"adamw": 1e-4, "adamw8bit": 1e-4, "prodigy": 1.0, "adafactor": 1e-2, "lion": 3e-5, "schedulefree": 1e-4}

# What we give instead of the library's own default. Prodigy's two are what its authors advise for diffusion models.
_OWN: dict[str, dict[str, Any]] = {
    "adamw": {"weight_decay": 0.01},
    "adamw8bit": {"weight_decay": 0.01},
    "prodigy": {"safeguard_warmup": True, "use_bias_correction": True},
}

# Options that are settings of ours, or that would break a run.
_HIDDEN = {"self", "params", "lr", "maximize", "differentiable", "capturable", "optim_bits", "args", "fsdp_in_use"}

_MISTAKES = (TypeError, ValueError, IndexError, AssertionError, RuntimeError, ArithmeticError, AttributeError)


@dataclass(frozen=True)
class Group:
    """Parameters with a learning rate of their own, which is 0 from step `stop` on."""

    name: str
    parameters: list[nn.Parameter]
    lr: float
    stop: int


def default_lr(name: str) -> float:
    """The learning rate that is taken when the recipe names none."""
    return _LR[name]


def build(spec: TrainSpec, parameters: list[nn.Parameter], groups: Sequence[Group] = ()) -> tuple[Optimizer, LambdaLR]:
    """The update rule over `parameters` and further `groups`, and its schedule over the run. Raises `UserError`.

    The schedule is stepped once after every optimiser step.
    """
    stop_on_errors(problems(spec))
    further = [{"params": g.parameters, "lr": g.lr, "name": g.name} for g in groups]
    optimizer = _make(spec, [{"params": parameters}, *further], _options(spec))
    ends = [spec.steps + 1, *(g.stop for g in groups)]
    return optimizer, LambdaLR(optimizer, [_course(spec, end) for end in ends])


def _course(spec: TrainSpec, end: int) -> Callable[[int], float]:
    return lambda done: factor(spec, done) if done < end else 0.0


def factor(spec: TrainSpec, done: int) -> float:
    """What the learning rate is multiplied by in the step after `done` steps.

    It rises linearly over the warm-up, 1/warmup in the first step and 1 in the last of it, then follows the schedule
    over the rest of the run; linear, cosine and polynomial (quadratic: (1 - p)^2) would reach 0 in the step after the
    last one, so that no step is spent on a rate of 0. restarts: `cycles` cosines of equal length.
    """
    if spec.optimizer == "schedulefree":  # warms up by itself and needs no schedule
        return 1.0
    if done < spec.warmup:
        return (done + 1) / spec.warmup
    p = min(1.0, (done - spec.warmup) / max(1, spec.steps - spec.warmup))
    if spec.schedule == "linear":
        return 1 - p
    if spec.schedule == "polynomial":
        return (1 - p) ** 2
    if spec.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * p))
    if spec.schedule == "restarts":
        return 0.5 * (1 + math.cos(math.pi * (p * spec.cycles % 1.0))) if p < 1 else 0.0
    return 1.0


@contextlib.contextmanager
def evaluation(optimizer: Optimizer) -> Iterator[None]:
    """Spans sampling and export: schedule-free rules train at one point and are judged at another.

    Afterwards the parameters are back bit for bit (the rule's own way back rounds). Checkpoints belong outside:
    they hold the point at which training goes on.
    """
    rule: Any = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has an eval of its own
    switch = getattr(rule, "eval", None)
    if switch is None or not rule.param_groups[0]["train_mode"]:
        yield
        return
    parameters = [p for group in rule.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in parameters]
    switch()
    try:
        yield
    finally:
        rule.train()
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)


# -- checks ------------------------------------------------------------------------------------------------------------


def problems(spec: TrainSpec) -> list[Problem]:
    """What is wrong or odd about the optimiser and the schedule of a recipe."""
    return [*_schedule_problems(spec), *_option_problems(spec)]


def _schedule_problems(spec: TrainSpec) -> Iterator[Problem]:
    if spec.warmup >= spec.steps:
        text = (
            f"train.warmup is {spec.warmup}, but the run has {spec.steps} steps: the learning rate never reaches "
            "train.lr; lower it."
        )
        yield Problem("warning", "train.warmup", text, {"train.warmup": spec.steps // 10})
    if spec.optimizer == "schedulefree" and spec.schedule != "constant":
        text = f"train.schedule is {spec.schedule}, but schedulefree needs none; set train.schedule=constant."
        yield Problem("error", "train.schedule", text, {"train.schedule": "constant"})
    if spec.cycles > 1 and spec.schedule != "restarts":
        text = f"train.cycles is {spec.cycles}, but only train.schedule=restarts has cycles; it has no effect."
        yield Problem("warning", "train.cycles", text, {"train.cycles": 1})
    if spec.optimizer == "prodigy" and spec.lr not in (None, 1.0):
        text = f"train.lr is {spec.lr:g}, but prodigy finds its own step size and train.lr only scales it; 1 is usual."
        yield Problem("warning", "train.lr", text, {"train.lr": 1.0})


def _option_problems(spec: TrainSpec) -> Iterator[Problem]:
    """Unknown names, and values the rule refuses: it is tried on one small tensor."""
    known = _names(spec)
    for key in spec.optimizer_options:
        if key in known:
            continue
        instead = {"lr": "train.lr", "warmup_steps": "train.warmup"}.get(key)
        text = f"set {instead} instead." if instead else f"{spec.optimizer} knows {', '.join(known)}."
        where = f"train.optimizer_options.{key}"
        yield Problem("error", where, f"{where} is not an option; {text}")
    for key in spec.optimizer_options:
        if key in known and (said := _refused(spec, key)):
            where, value = f"train.optimizer_options.{key}", spec.optimizer_options[key]
            yield Problem("error", where, f"{where} is {value!r}, which {spec.optimizer} refuses ({said}); change it.")


def _names(spec: TrainSpec) -> list[str]:
    """The options that a recipe may set."""
    hidden = _HIDDEN | ({"warmup_steps"} if spec.optimizer == "schedulefree" else set())
    return [n for n in inspect.signature(_class(spec.optimizer).__init__).parameters if n not in hidden]


def _refused(spec: TrainSpec, key: str) -> str | None:
    """What the rule says against one option, or None. Paged memory exists on a GPU only and is not tried."""
    if key == "is_paged":
        return None if isinstance(spec.optimizer_options[key], bool) else "it must be true or false"
    parameter = nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2)
    own = {k: v for k, v in _options(spec).items() if k not in spec.optimizer_options}
    try:
        _make(spec, [parameter], {**own, key: spec.optimizer_options[key]}).step()
    except _MISTAKES as error:
        return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
    return None if parameter.isfinite().all() else "it makes the weights infinite"


# -- making ------------------------------------------------------------------------------------------------------------


def _class(name: str) -> type[Optimizer]:
    if name in {"adamw8bit", "lion"}:
        import bitsandbytes  # noqa: PLC0415  (seconds to import; only these two need it)

        return bitsandbytes.optim.AdamW8bit if name == "adamw8bit" else bitsandbytes.optim.Lion
    if name == "prodigy":
        import prodigyopt  # noqa: PLC0415  (only this rule needs it)

        return prodigyopt.Prodigy
    if name == "schedulefree":
        import schedulefree  # noqa: PLC0415  (only this rule needs it)

        return schedulefree.AdamWScheduleFree
    return {"adamw": torch.optim.AdamW, "adafactor": torch.optim.Adafactor}[name]


def _options(spec: TrainSpec) -> dict[str, Any]:
    """Our defaults with the recipe's options on top."""
    own = dict(_OWN.get(spec.optimizer, {}))
    if spec.optimizer == "schedulefree":
        own["warmup_steps"] = spec.warmup
    return own | spec.optimizer_options


def _make(spec: TrainSpec, parameters: list[Any], options: dict[str, Any]) -> Optimizer:
    """The rule, ready to train. Prodigy prints to standard output, which belongs to the journal."""
    with contextlib.redirect_stdout(io.StringIO()):
        lr = default_lr(spec.optimizer) if spec.lr is None else spec.lr
        rule: Any = _class(spec.optimizer)
        optimizer = rule(parameters, lr=lr, **options)
    if spec.optimizer == "schedulefree":
        optimizer.train()
    return optimizer
