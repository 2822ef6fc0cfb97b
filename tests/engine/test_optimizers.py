"""Update rules: they train, resume exactly, refuse wrong options; schedules have the values they should."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from tuner import optimizers
from tuner.errors import UserError
from tuner.recipe import TrainSpec

NAMES = ["adamw", "adamw8bit", "prodigy", "adafactor", "lion", "schedulefree"]
LR = {"prodigy": 1.0, "adafactor": 0.1}


def spec(name="adamw", **settings) -> TrainSpec:
    return TrainSpec(**{"optimizer": name, "steps": 200, "lr": LR.get(name, 1e-2)} | settings)


def start() -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    # 4160 numbers: bitsandbytes keeps 8-bit states for tensors of 4096 and more only
    return [nn.Parameter(torch.randn(65, 64, generator=g)), nn.Parameter(torch.zeros(8))]


def target() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(65, 64, generator=g), torch.ones(8)]


def train(parameters, optimizer, scheduler, steps) -> float:
    for _ in range(steps):
        loss = torch.stack([(p - t).square().sum() for p, t in zip(parameters, target(), strict=True)]).sum()
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_lowers_a_quadratic(name):
    parameters = start()
    optimizer, scheduler = optimizers.build(spec(name), parameters)
    first = train(parameters, optimizer, scheduler, 1)
    assert train(parameters, optimizer, scheduler, 150) < 0.7 * first


@pytest.mark.parametrize("name", NAMES)
def test_resume_is_exact(name):
    settings = {"steps": 20, "warmup": 4, "schedule": "constant" if name == "schedulefree" else "cosine"}
    through = start()
    optimizer, scheduler = optimizers.build(spec(name, **settings), through)
    train(through, optimizer, scheduler, 7)
    file = io.BytesIO()
    torch.save(([p.detach() for p in through], optimizer.state_dict(), scheduler.state_dict()), file)
    train(through, optimizer, scheduler, 6)

    file.seek(0)
    kept = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(p.clone()) for p in kept[0]]
    optimizer, scheduler = optimizers.build(spec(name, **settings), resumed)
    optimizer.load_state_dict(kept[1])
    scheduler.load_state_dict(kept[2])
    train(resumed, optimizer, scheduler, 6)
    for a, b in zip(through, resumed, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(resumed[0], kept[0][0])


@pytest.mark.parametrize("name", NAMES)
def test_usual_rate_is_taken_when_none_is_set(name):
    optimizer, _ = optimizers.build(spec(name, lr=None), start())
    assert optimizer.param_groups[0]["lr"] == optimizers.default_lr(name)


def test_names_are_the_right_classes():
    made = {n: type(optimizers.build(spec(n), start())[0]).__name__ for n in NAMES}
    classes = ["AdamW", "AdamW8bit", "Prodigy", "Adafactor", "Lion", "AdamWScheduleFree"]
    assert made == dict(zip(NAMES, classes, strict=True))


def test_adamw8bit_holds_8bit_states():
    parameters = start()
    optimizer, scheduler = optimizers.build(spec("adamw8bit"), parameters)
    train(parameters, optimizer, scheduler, 1)
    assert optimizer.state[parameters[0]]["state1"].dtype == torch.uint8


def test_adamw_needs_no_library_but_torch():
    code = (
        "import sys, torch; from tuner import optimizers; from tuner.recipe import TrainSpec;"
        "optimizers.build(TrainSpec(), [torch.nn.Parameter(torch.ones(2))]);"
        "sys.exit(bool({'bitsandbytes', 'prodigyopt', 'schedulefree', 'diffusers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- schedules -------------------------------------------------------------------------------------------------------


def rates(**settings) -> list[float]:
    """The learning rate of each step of a run of 110 steps, 10 of them warm-up, as a share of the full one."""
    s = spec(**{"steps": 110, "warmup": 10, "lr": 0.5} | settings)
    optimizer, scheduler = optimizers.build(s, [nn.Parameter(torch.ones(2))])
    seen = []
    for _ in range(s.steps):
        seen.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "polynomial", "restarts"])
def test_warmup_starts_above_nothing_and_ends_at_the_full_rate(schedule):
    assert rates(schedule=schedule)[:11] == pytest.approx([*[i / 10 for i in range(1, 11)], 1.0])
    assert rates(schedule=schedule, warmup=0)[0] == 1.0


@pytest.mark.parametrize(
    ("schedule", "quarter", "middle", "last"),
    [
        ("constant", 1, 1, 1),
        ("linear", 0.75, 0.5, 0.01),
        ("cosine", (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.cos(math.pi / 100)) / 2),
        ("polynomial", 0.5625, 0.25, 0.0001),
    ],
)
def test_the_schedule_spans_the_run(schedule, quarter, middle, last):
    seen = rates(schedule=schedule)
    assert [seen[35], seen[60], seen[109]] == pytest.approx([quarter, middle, last])


def test_after_the_last_step_the_rate_is_nothing():
    for schedule in ("linear", "cosine", "polynomial", "restarts"):
        assert optimizers.factor(spec(schedule=schedule, steps=110, warmup=10, cycles=2), 110) == pytest.approx(0)


def test_restarts_repeat_the_cosine():
    seen = rates(schedule="restarts", cycles=4)
    assert seen[10:35] == pytest.approx(seen[35:60])
    assert seen[10:35] == pytest.approx(seen[85:110])
    assert [seen[i] for i in (10, 35, 60, 85)] == [1.0] * 4
    assert seen[34] < 0.01
    assert rates(schedule="restarts", cycles=1) == pytest.approx(rates(schedule="cosine"))


def test_schedulefree_warms_up_by_itself():
    optimizer, scheduler = optimizers.build(spec("schedulefree", warmup=10), parameters := start())
    assert optimizer.param_groups[0]["warmup_steps"] == 10
    train(parameters, optimizer, scheduler, 1)
    assert optimizer.param_groups[0]["scheduled_lr"] == pytest.approx(1e-3)
    assert scheduler.get_last_lr() == [1e-2]


# -- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_shows_the_other_point_and_leaves_no_trace():
    parameters = start()
    optimizer, scheduler = optimizers.build(spec("schedulefree"), parameters)
    train(parameters, optimizer, scheduler, 5)
    before = [p.detach().clone() for p in parameters]
    with optimizers.evaluation(optimizer):
        beta, z = optimizer.param_groups[0]["betas"][0], optimizer.state[parameters[0]]["z"]
        expected = (before[0] - (1 - beta) * z) / beta  # y = beta x + (1 - beta) z
        torch.testing.assert_close(parameters[0].detach(), expected, atol=1e-6, rtol=1e-6)
        inside = parameters[0].detach().clone()
        with optimizers.evaluation(optimizer):
            assert torch.equal(parameters[0], inside)
        assert torch.equal(parameters[0], inside)
    assert not torch.equal(inside, before[0])
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
    train(parameters, optimizer, scheduler, 1)


def test_evaluation_changes_nothing_for_other_rules():
    parameters = start()
    optimizer, scheduler = optimizers.build(spec("adamw"), parameters)
    train(parameters, optimizer, scheduler, 2)
    before = parameters[0].detach().clone()
    with optimizers.evaluation(optimizer):
        assert torch.equal(parameters[0], before)


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_named_with_those_there_are(name):
    with pytest.raises(UserError, match=r"train\.optimizer_options\.weight_decey is not an option; .*weight_decay"):
        optimizers.build(spec(name, optimizer_options={"weight_decey": 0.1}), start())


BAD = [(name, "weight_decay", "much") for name in NAMES]
BAD += [(name, "betas", [0.9]) for name in NAMES if name != "adafactor"]
BAD += [(name, "eps", "a") for name in NAMES if name != "lion"]


@pytest.mark.parametrize(("name", "key", "value"), BAD)
def test_a_bad_value_is_named(name, key, value):
    with pytest.raises(UserError, match=rf"train\.optimizer_options\.{key} is .*, which {name} refuses"):
        optimizers.build(spec(name, optimizer_options={key: value}), start())


@pytest.mark.parametrize("name", NAMES)
def test_good_options_arrive(name):
    options = {"weight_decay": 0.07} | ({} if name == "adafactor" else {"betas": [0.8, 0.9]})
    optimizer, _ = optimizers.build(spec(name, optimizer_options=options), start())
    assert optimizer.param_groups[0]["weight_decay"] == 0.07
    if name != "adafactor":
        assert tuple(optimizer.param_groups[0]["betas"]) == (0.8, 0.9)


def test_settings_of_ours_are_not_options():
    with pytest.raises(UserError, match=r"options\.lr is not an option; set train\.lr instead"):
        optimizers.build(spec(optimizer_options={"lr": 1}), start())
    with pytest.raises(UserError, match=r"warmup_steps is not an option; set train\.warmup instead"):
        optimizers.build(spec("schedulefree", optimizer_options={"warmup_steps": 1}), start())


def test_prodigy_prints_nothing(capsys):
    optimizers.build(spec("prodigy", optimizer_options={"weight_decay": 0.01}), start())
    assert capsys.readouterr().out == ""


def found(**settings) -> list[tuple[str, str]]:
    return [(p.level, p.where) for p in optimizers.problems(spec(**settings))]


def test_problems():
    assert found() == []
    assert found(name="schedulefree", schedule="cosine") == [("error", "train.schedule")]
    assert found(warmup=300) == [("warning", "train.warmup")]
    assert found(cycles=3) == [("warning", "train.cycles")]
    assert found(cycles=3, schedule="restarts") == []
    assert found(name="prodigy", lr=1e-4) == [("warning", "train.lr")]
    assert found(name="prodigy", lr=None) == []
    with pytest.raises(UserError, match=r"train\.schedule"):
        optimizers.build(spec("schedulefree", schedule="linear"), start())
