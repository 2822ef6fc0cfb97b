"""LyCORIS: what a layer answers, what a file says of it, and what lycoris-lora itself makes of both."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lycoris
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tests.engine.test_runs import pictures
from tests.families.case import Rig
from tests.families.cases import all_cases
from tuner import adapters, quantise
from tuner.__main__ import main
from tuner.adapters import start
from tuner.adapters._lycoris import TENSORS, Change
from tuner.adapters._lycoris_start import understood
from tuner.adapters.lycoris import Lycoris, refuses
from tuner.checkpoint import WEIGHTS
from tuner.errors import UserError
from tuner.events import follow
from tuner.families import get
from tuner.formats.layers import Layer
from tuner.loop import Trainer
from tuner.recipe import LoraSpec, LycorisKnobs, LycorisSpec, Recipe, TrainSpec
from tuner.types import Batch, generator

# -- one layer ---------------------------------------------------------------------------------------------------------

SMALL = {"rank": 4, "alpha": 6.0}
KNOBS: dict[str, dict[str, Any]] = {
    "locon": SMALL,
    "locon-scalar": {**SMALL, "scalar": True},
    "locon-tucker": {**SMALL, "tucker": True, "conv_rank": 3, "conv_alpha": 5.0},
    "locon-dora": {**SMALL, "dora": True},
    "locon-dora-in": {**SMALL, "dora": True, "dora_on": "input"},
    "loha": SMALL,
    "loha-scalar": {**SMALL, "scalar": True},
    "loha-tucker": {**SMALL, "tucker": True},
    "loha-dora": {**SMALL, "dora": True},
    "lokr": {"rank": 2, "alpha": 3.0},
    "lokr-both": {"rank": 1, "alpha": 2.0, "decompose_both": True, "factor": 4},
    "lokr-whole": {"full_matrix": True},
    "lokr-unbalanced": {"rank": 2, "alpha": 3.0, "unbalanced": True, "factor": 4},
    "lokr-tucker": {"rank": 1, "alpha": 3.0, "tucker": True, "scalar": True},
    "lokr-dora": {"rank": 2, "alpha": 3.0, "dora": True},
    "lokr-dora-in": {"rank": 2, "alpha": 3.0, "dora": True, "dora_on": "input"},
    "dylora": {**SMALL, "block_size": 2},
    "ia3": {},
    "ia3-in": {"on_input": True},
    "diag_oft": {"rank": 4},
    "diag_oft-rescaled": {"rank": 4, "rescaled": True},
    "diag_oft-constraint": {"rank": 4, "constraint": 0.01},
    "boft": {"rank": 4},
    "boft-rescaled": {"rank": 4, "rescaled": True, "constraint": 0.01},
    "glora": SMALL,
    "glora-scalar": {**SMALL, "scalar": True},
    "full": {},
}
BASES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(24, 16),
    "square": lambda: nn.Linear(16, 16, bias=False),
    "conv": lambda: nn.Conv2d(8, 16, 3, stride=2, padding=1),
    "point": lambda: nn.Conv2d(8, 16, 1),
    "square conv": lambda: nn.Conv2d(8, 8, 3, padding=1),
}


def knobs(name: str) -> LycorisKnobs:
    """The settings of one line of `KNOBS`, filled."""
    return LycorisKnobs.model_validate({"algorithm": name.split("-")[0], **KNOBS[name]}).filled()


def one(name: str, base: str) -> tuple[Change, nn.Module, Tensor]:
    """(a change with random numbers, its layer, something to answer to)."""
    torch.manual_seed(1)
    layer = BASES[base]()
    change = Change("a.b", layer, knobs(name)).eval()
    with torch.no_grad():
        for p in change.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return (
        change,
        layer,
        torch.randn(2, 8, 6, 6) if isinstance(layer, nn.Conv2d) else torch.randn(2, 5, layer.in_features),
    )


def by_weight(layer: Any, x: Tensor, told: Layer) -> Tensor:
    """The layer's operation with what a file says."""
    return apply(layer, x, told.delta(layer.weight.detach()), told.bias())


def apply(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer's operation with another weight."""
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(x, weight, bias, layer.stride, layer.padding)
    return functional.linear(x, weight, bias)


each = pytest.mark.parametrize(("name", "base"), [(n, b) for n in KNOBS for b in BASES])


@each
def test_a_layer_answers_what_its_file_says_and_learns_accordingly(name: str, base: str) -> None:
    """Value and gradient, at an alpha unlike the rank."""
    change, layer, x = one(name, base)
    live = change(x, layer(x))
    assert live.abs().max() > 3e-3
    torch.testing.assert_close(live, by_weight(layer, x, change.layer("unet")), atol=1e-5, rtol=1e-5)
    if name.startswith("dylora"):
        return  # its gradient reaches one block, see below
    kind, tensors, alpha = TENSORS[change.knobs.algorithm](change.inner)
    stated = by_weight(layer, x, Layer("unet", "a.b", kind, tensors, alpha))
    weight = torch.randn_like(live)
    own = dict(change.named_parameters())
    ours = torch.autograd.grad((live * weight).sum(), list(own.values()))
    theirs = torch.autograd.grad((stated * weight).sum(), list(own.values()))
    for key, a, b in zip(own, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


@each
def test_lycoris_own_module_agrees(name: str, base: str) -> None:
    """lycoris-lora's forward on a float32 layer is the oracle, for what a file says too."""
    change, layer, x = one(name, base)
    m = change.inner
    if name.startswith("dylora"):  # its own forward draws a rank
        whole, _ = m.get_diff_weight(rank=(m.block_count - 1) * m.block_size)
        theirs = apply(layer, x, whole)
    else:
        if name == "full":  # the copy of the base that it keeps and we do not
            m._org_weight, m.org_bias = [layer.weight.data], None if layer.bias is None else [layer.bias.data]
        theirs = m(x) - layer(x)
    torch.testing.assert_close(change(x, layer(x)), theirs, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(by_weight(layer, x, change.layer("unet")), theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("base", ["linear", "conv"])
def test_dylora_learns_one_block_of_a_cut_adapter(base: str) -> None:
    change, layer, x = one("dylora", base)
    change.train()
    down, up = torch.cat(list(change.inner.down_list)), torch.cat(list(change.inner.up_list), dim=1)
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        answer = change(x, layer(x))
        grads = torch.autograd.grad(answer.square().sum(), list(change.parameters()), allow_unused=True)
        (block,) = [i for i, g in enumerate(grads[:2]) if g is not None]
        rank = 2 * (block + 1)
        weight = (6.0 / rank) * (up[:, :rank] @ down[:rank]).reshape(layer.weight.shape)
        torch.testing.assert_close(answer, apply(layer, x, weight), atol=1e-5, rtol=1e-5)
        seen.add(block)
    assert seen == {0, 1}


def test_small_changes_of_a_bf16_layer_are_not_rounded_away() -> None:
    """lycoris-lora adds them to the weight in its number format, which is why its forward is not used."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64).bfloat16()
    change = Change("a", layer, LycorisKnobs(algorithm="locon", rank=4).filled())
    with torch.no_grad():
        change.inner.lora_up.weight.fill_(1e-4)
    x = torch.randn(4, 64).bfloat16()
    exact = functional.linear(x.float(), change.layer("t").delta(layer.weight.detach()))

    def wrong(answer: Tensor) -> float:
        return ((answer.float() - exact).norm() / exact.norm()).item()

    ours = change(x, layer(x))
    theirs = functional.linear(x.float(), (layer.weight + change.inner.make_weight().bfloat16() - layer.weight).float())
    assert wrong(ours) < 0.01
    assert wrong(theirs) > 0.3


@pytest.mark.parametrize("name", ["locon", "loha-dora", "lokr", "diag_oft", "boft", "glora", "ia3", "full", "dylora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_near_and_learns(name: str, dtype: torch.dtype) -> None:
    change, layer, x = one(name, "linear")
    exact = change(x, layer(x)).detach()
    layer.to(dtype)
    with torch.autocast("cpu", dtype):
        near = change(x.to(dtype), layer(x.to(dtype)))
    near.float().square().sum().backward()
    learning = [p for n, p in change.named_parameters() if not n.endswith("_list.0")]  # DyLoRA's first block rests
    assert all(p.grad is not None and p.grad.isfinite().all() and p.dtype is torch.float32 for p in learning)
    assert (near.float() - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("base", ["linear", "conv"])
@pytest.mark.parametrize("name", list(KNOBS))
def test_held_in_bf16_it_answers_nearly_the_same(name: str, base: str) -> None:
    """As it is for samples on an accelerator: everything in the base's number format, without autocast."""
    change, layer, x = one(name, base)
    layer.bfloat16()
    x = x.bfloat16().float()
    exact = by_weight(layer.float(), x, change.layer("unet"))
    layer.bfloat16()
    for p in change.parameters():
        p.data = p.data.bfloat16()
    near = change(x.bfloat16(), layer(x.bfloat16()))
    assert (near.float() - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("name", [n for n in KNOBS if n != "dylora"])
def test_every_dropout_acts_while_training_only(name: str) -> None:
    for setting in ("dropout", "rank_dropout", "module_dropout"):
        change, layer, x = one(name, "conv" if "tucker" in name else "linear")
        change.knobs = change.knobs.model_copy(update={setting: 0.5})
        whole = change(x, layer(x))
        change.train()
        answers = []
        for seed in range(6):
            torch.manual_seed(seed)
            answers.append(change(x, layer(x)))
        assert any(not a.equal(whole) for a in answers), setting
        torch.manual_seed(0)
        assert change(x, layer(x)).equal(answers[0]), setting


def test_what_cannot_be_changed_is_refused() -> None:
    with pytest.raises(UserError, match=r"BOFT cannot divide the 24 outputs of a: it takes a rank of 6 or more"):
        Change("a", nn.Linear(8, 24), LycorisKnobs(algorithm="boft", rank=4).filled())
    Change("a", nn.Linear(8, 24), LycorisKnobs(algorithm="boft", rank=6).filled())
    with pytest.raises(UserError, match=r"BOFT cannot divide the 15 outputs of a: no rank can"):
        Change("a", nn.Linear(8, 15), LycorisKnobs(algorithm="boft", rank=4).filled())
    with pytest.raises(UserError, match=r"divides the 4 outputs of a into blocks of one channel"):
        Change("a", nn.Linear(8, 4), LycorisKnobs(algorithm="diag_oft", rank=4).filled())
    with pytest.raises(UserError, match=r"a is a convolution in groups"):
        Change("a", nn.Conv2d(8, 8, 3, groups=2), LycorisKnobs(algorithm="glora", rank=4).filled())
    grouped = nn.Conv2d(8, 8, 3, groups=2)
    x = torch.randn(1, 8, 5, 5)
    for algorithm in ("locon", "loha", "lokr", "diag_oft", "full"):
        change = Change("a", grouped, LycorisKnobs(algorithm=algorithm, rank=2).filled()).eval()
        with torch.no_grad():
            for p in change.parameters():
                p.add_(torch.randn_like(p) * 0.2)
        told = change.layer("unet")
        expected = functional.conv2d(x, told.delta(grouped.weight), told.bias(), groups=2)
        torch.testing.assert_close(change(x, grouped(x)), expected, atol=1e-5, rtol=1e-5)


def test_the_magnitude_of_a_square_layer_says_its_axis_by_its_shape() -> None:
    for dora_on, shape in (("output", (16,)), ("input", (1, 16))):
        change = Change("a", nn.Linear(16, 16), LycorisKnobs(algorithm="locon", dora=True, dora_on=dora_on).filled())
        assert change.layer("t").tensors["magnitude"].shape == shape


def test_a_row_of_zeros_has_no_direction() -> None:
    """peft and plain division make it NaN; LyCORIS' epsilon keeps it zero."""
    t = {"down": torch.zeros(2, 4), "up": torch.zeros(3, 2), "magnitude": torch.ones(3)}
    weight = torch.randn(3, 4)
    weight[1] = 0
    assert Layer("t", "a", "lora", t, 2.0).delta(weight).isfinite().all()


def quantised(how: str, layer: nn.Linear) -> nn.Module:
    """The layer with its weight in fewer bits."""
    if how == "int8":
        quanto = pytest.importorskip("optimum.quanto")
        made = quanto.quantize_module(layer, weights=quanto.qint8)
        made.freeze()
        return made
    bnb = pytest.importorskip("bitsandbytes")
    if how == "nf4":
        made = bnb.nn.Linear4bit(layer.in_features, layer.out_features, True, torch.float32)
        made.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
        made.support_avx512bf16_for_cpu = False
    else:
        made = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, True, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    made.bias = layer.bias
    return made.to("cpu")


@pytest.mark.parametrize("how", ["int8", "nf4", "int8_bnb"])
@pytest.mark.parametrize("name", ["locon", "locon-dora", "loha", "lokr", "ia3-in", "diag_oft", "boft", "glora"])
def test_a_quantised_layer_is_changed_by_what_the_file_says_of_its_numbers(name: str, how: str) -> None:
    torch.manual_seed(0)
    layer = quantised(how, nn.Linear(64, 64).requires_grad_(False))
    change = Change("a", layer, knobs(name)).eval()
    with torch.no_grad():
        for p in change.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    # the numbers that it multiplies with, whatever holds them
    weight = (layer(torch.eye(64)) - layer(torch.zeros(1, 64))).T.detach()
    x = torch.randn(3, 64)
    live = change(x, layer(x))
    torch.testing.assert_close(live, functional.linear(x, change.layer("t").delta(weight)), atol=1e-5, rtol=1e-4)
    live.square().sum().backward()
    assert all(p.grad is not None for p in change.parameters())


# -- settings ----------------------------------------------------------------------------------------------------------


def recipe(**adapter: Any) -> Recipe:
    """A recipe with this adapter."""
    settings = {"family": "flux1", "source": "x", "data": [{"path": "x"}], "adapter": {"kind": "lycoris", **adapter}}
    return Recipe.model_validate(settings)


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ({"algorithm": "ia3", "rank": 4}, r"adapter\.rank has no meaning for the algorithm ia3"),
        ({"algorithm": "loha", "factor": 4}, r"factor has no meaning for the algorithm loha, only for lokr"),
        ({"algorithm": "locon", "constraint": 0.1}, r"only for diag_oft, boft"),
        ({"algorithm": "glora", "tucker": True}, r"tucker has no meaning for the algorithm glora"),
        ({"algorithm": "diag_oft", "alpha": 3}, r"alpha has no meaning for the algorithm diag_oft"),
        ({"algorithm": "dylora", "rank_dropout": 0.1}, r"rank_dropout has no meaning for the algorithm dylora"),
        ({"algorithm": "dylora", "rank": 6, "block_size": 4}, r"rank is 6, which is no multiple of block_size 4"),
        ({"algorithm": "lokr", "full_matrix": True, "rank": 4}, r"rank has no meaning with full_matrix"),
        ({"algorithm": "loha", "dora_on": "input"}, r"dora_on is input, but dora is off"),
        ({"algorithm": "boft", "rank": 1}, r"boft turns blocks of two channels"),
        ({"algorithms": {"*.ff.*": {"algorithm": "ia3", "rank": 2}}}, r"adapter\.algorithms\.\*\.ff\.\*\.rank"),
    ],
)  # fmt: skip
def test_settings_that_do_nothing_are_refused(adapter: dict[str, Any], says: str) -> None:
    assert (reason := refuses(get("flux1")(), recipe(**adapter)))
    assert re.search(says, reason), reason


def test_over_a_quantised_base_what_cannot_begin_as_the_base_is_refused() -> None:
    asked = recipe(algorithm="locon", dora=True)
    for method, refused in (("fp8", True), ("nf4", False)):
        memory = asked.memory.model_copy(update={"quantise": method})
        reason = refuses(get("flux1")(), asked.model_copy(update={"memory": memory}))
        assert ("dora" in (reason or "")) == refused
    full = recipe(algorithm="full").model_copy(update={"memory": asked.memory.model_copy(update={"quantise": "int8"})})
    assert "whole weights" in (refuses(get("flux1")(), full) or "")


def test_settings_that_are_written_out_are_still_taken() -> None:
    """What the run folder keeps is what was asked for, and asks for the same again."""
    for name in KNOBS:
        asked = recipe(
            **{"algorithm": name.split("-")[0], **KNOBS[name], "algorithms": {"*.ff.*": {"algorithm": "ia3"}}}
        )
        filled = asked.model_copy(update={"adapter": asked.adapter.filled()})
        again = Recipe.model_validate(json.loads(filled.model_dump_json(by_alias=True)))
        assert again.adapter == filled.adapter
        assert isinstance(again.adapter, LycorisSpec)
        assert again.adapter.filled() == again.adapter
        assert refuses(get("flux1")(), asked) is None
        assert refuses(get("flux1")(), again) is None


def test_alpha_is_the_rank_unless_stated() -> None:
    """Also of another algorithm's own rank."""
    spec = LycorisSpec(rank=8, alpha=2, algorithms={"a": LycorisKnobs(rank=4), "b": LycorisKnobs(algorithm="loha")})
    filled = spec.filled()
    assert (filled.of("a").rank, filled.of("a").alpha) == (4, 4.0)
    assert (filled.of("b").rank, filled.of("b").alpha) == (8, 2.0)
    assert (filled.conv_rank, filled.conv_alpha) == (8, 2.0)


# -- whole networks ----------------------------------------------------------------------------------------------------

ALGORITHMS = {
    "locon": {"rank": 4, "alpha": 2},
    "locon-dora": {"rank": 4, "alpha": 2, "dora": True},
    "loha": {"rank": 4, "alpha": 2},
    "lokr": {"rank": 2, "alpha": 4},
    "lokr-unbalanced": {"rank": 2, "alpha": 1, "unbalanced": True, "factor": 4},
    "dylora": {"rank": 4, "alpha": 2, "block_size": 2},
    "ia3": {},
    "diag_oft": {"rank": 4, "rescaled": True},
    "boft": {"rank": 64},
    "glora": {"rank": 4, "alpha": 2},
    "full": {},
}
QUICK = [("flux1", n) for n in ALGORITHMS] + [("sd1", n) for n in ("locon", "loha", "lokr", "diag_oft")]
ALL = [(f, n) for f in ("flux1", "sd1", "lumina2") for n in ALGORITHMS]
REST = [pytest.param(f, n, marks=pytest.mark.families) for f, n in ALL if (f, n) not in QUICK]


@pytest.fixture(scope="module")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Rig]:
    """A family's models, built once; `fresh` takes a copy of the network."""
    built: dict[str, Rig] = {}

    def get(family: str) -> Rig:
        if family not in built:
            folder = tmp_path_factory.mktemp(family)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                all_cases()[family].build(folder)
            built[family] = Rig(all_cases()[family], folder)
        return built[family]

    return get


def fresh(rig: Rig) -> Rig:
    """The same models around a network of its own."""
    other = copy.copy(rig)
    other.parts = copy.copy(rig.parts)
    other.parts.components = {**rig.parts.components, rig.family.denoiser: copy.deepcopy(rig.parts.network)}
    other.parts.network.eval()
    return other


def spec_of(name: str, family: str, **more: Any) -> LycorisSpec:
    """The settings of one line of `ALGORITHMS`, on everything that the family's widest preset reaches."""
    targets = "with-conv" if family == "sd1" else "all-linear"
    settings = {"algorithm": name.split("-")[0], **ALGORITHMS[name], "targets": targets, **more}
    return LycorisSpec.model_validate(settings)


def attached(rig: Rig, spec: LycorisSpec) -> Lycoris:
    """Its adapter."""
    torch.manual_seed(3)
    adapter = adapters.build(spec, rig.family, rig.parts)
    assert isinstance(adapter, Lycoris)
    return adapter


def question(rig: Rig) -> Callable[[], Tensor]:
    """The network's answer to one fixed question."""
    shape = rig.case.shapes[0]
    x, cond = rig.latent(shape, 1), rig.cond(["a red photo"], shape)

    def answer() -> Tensor:
        with torch.no_grad():
            return rig.family.predict(rig.parts.network, x, torch.tensor([0.5]), cond)

    return answer


def trained(rig: Rig, adapter: Lycoris, steps: int = 8) -> list[float]:
    """Losses of a few steps of the engine's own trainer on one item, at one noise."""
    spec = TrainSpec(steps=steps, lr=2e-3, precision="fp32", optimizer_options={"weight_decay": 0})
    trainer: Trainer = rig.trainer(adapter, spec)
    shape = rig.case.shapes[0]
    batch = Batch(rig.latent(shape, 2), rig.cond(["a", "b"], shape), ("a", "b"), (0, 1), 2)
    noised = trainer.draw(batch)
    trainer.draw = lambda _: noised  # the same question each time, so that the loss tells
    rig.parts.network.train()
    losses = [trainer.step([batch])["loss"] for _ in range(steps)]
    rig.parts.network.eval()
    return losses


@contextmanager
def merged(rig: Rig, layers: list[Layer]) -> Iterator[None]:
    """The layers' changes added to the network's own weights."""
    kept = copy.deepcopy(rig.parts.network.state_dict())
    for layer in layers:
        module: Any = rig.parts.network.get_submodule(layer.module)
        module.weight.data += layer.delta(module.weight.data)
        if (bias := layer.bias()) is not None:
            module.bias.data += bias
    yield
    rig.parts.network.load_state_dict(kept)


@pytest.mark.parametrize(("family", "name"), [*QUICK, *REST])
def test_an_adapter_starts_as_the_base_learns_loads_and_merges(
    family: str, name: str, rigs: Callable[[str], Rig], tmp_path: Path
) -> None:
    rig = fresh(rigs(family))
    base = question(rig)()
    adapter = attached(rig, spec_of(name, family))
    ask = question(rig)
    # every algorithm starts as the base; DoRA, rotations and IA3 to the last digits of a product more
    torch.testing.assert_close(ask(), base, atol=1e-5, rtol=1e-5)
    start = adapter.state_dict()
    losses = trained(rig, adapter, 24 if name == "dylora" else 8)
    assert sum(losses[-2:]) < sum(losses[:2]), losses
    state = adapter.state_dict()
    still = [k for k, v in state.items() if v.equal(start[k]) and not re.search(rig.case.without_gradient, k)]
    assert not still
    whole = ask()
    assert (whole - base).abs().max() > 1e-3

    other = fresh(rigs(family))
    again = attached(other, spec_of(name, family))
    again.load_state_dict(state)
    assert question(other)().equal(whole)

    plain = fresh(rigs(family))
    with merged(plain, adapter.layers()):
        torch.testing.assert_close(question(plain)(), whole, atol=1e-5, rtol=1e-5)

    with adapter.disabled():
        assert ask().equal(base)
    with adapter.scaled(0.0):
        assert ask().equal(base)
    with adapter.scaled(-1.0), merged(plain, [scaled(x, plain) for x in adapter.layers()]):
        torch.testing.assert_close(ask(), question(plain)(), atol=1e-5, rtol=1e-5)
    assert ask().equal(whole)
    exported_loads(rigs(family), adapter, whole, tmp_path)


def scaled(layer: Layer, rig: Rig) -> Layer:
    """The layer's change times -1, as a plain difference."""
    weight = rig.parts.network.get_submodule(layer.module).weight
    bias = layer.bias()
    more = {} if bias is None else {"bias": -bias}
    return Layer(layer.part, layer.module, "diff", {"weight": -layer.delta(weight.detach()), **more})


STARTS = [("flux1", n) for n in ALGORITHMS] + [("sd1", n) for n in (*ALGORITHMS, "loha-tucker", "lokr-tucker")]
NOW = {("flux1", "lokr-unbalanced"), ("flux1", "dylora"), ("sd1", "diag_oft"), ("sd1", "lokr-tucker")}


@pytest.mark.parametrize(
    ("family", "name"), [pytest.param(*s, marks=[] if s in NOW else pytest.mark.families) for s in STARTS]
)
def test_a_run_goes_on_from_a_file_or_checkpoint(
    family: str, name: str, rigs: Callable[[str], Rig], tmp_path: Path
) -> None:
    """Algorithms, sizes and layers are the file's; it answers and changes the weights as the file does."""
    rig = fresh(rigs(family))
    adapter = attached(rig, spec_of(name.split("-")[0], family, **ALGORITHMS.get(name, KNOBS[name])))
    trained(rig, adapter, 4)
    whole, layers = question(rig)(), {x.module: x for x in adapter.layers()}
    checkpoint = tmp_path / WEIGHTS
    save_file(adapter.state_dict(), checkpoint, adapter.metadata())
    files = [w.path for w in rig.exported(adapter, tmp_path) if w.format in ("diffusers", "lycoris")]
    assert files
    for path in (checkpoint, *files):
        other = fresh(rigs(family))
        given = LycorisSpec(start=str(path), dropout=0.1)
        spec = understood(given, other.family, other.source)
        assert understood(LycorisSpec.model_validate(spec.model_dump()), other.family, other.source) == spec
        assert spec.dropout == 0.1
        again = attached(other, spec)
        adapters.begin(again, spec, other.family, other.source)
        torch.testing.assert_close(question(other)(), whole, atol=1e-6, rtol=1e-6)
        for own in again.layers():
            base: Any = other.parts.network.get_submodule(own.module)
            torch.testing.assert_close(
                own.delta(base.weight.detach()), layers[own.module].delta(base.weight.detach()), atol=1e-7, rtol=1e-6
            )
        losses = trained(other, again, 4)
        assert losses[-1] < losses[0]


def test_what_contradicts_the_start_is_refused(rigs: Callable[[str], Rig], tmp_path: Path) -> None:
    rig = fresh(rigs("flux1"))
    adapter = attached(rig, spec_of("lokr", "flux1"))
    path = str(next(w.path for w in rig.exported(adapter, tmp_path) if w.format == "lycoris"))
    for more, sentence in (
        ({"algorithm": "loha"}, r"adapter\.algorithm is loha, but the adapter .* was trained with lokr"),
        ({"rank": 8}, r"adapter\.rank is 8, but .* with 2; leave adapter\.rank out"),
        ({"scalar": True}, r"adapter\.scalar is True, but .* with False"),
        ({"targets": ["to_q"]}, r"adapter\.targets is \['to_q'\], but"),
    ):
        with pytest.raises(UserError, match=sentence):
            understood(LycorisSpec(start=path, **more), rig.family, rig.source)
    with pytest.raises(UserError, match=r"of the kind lokr, and adapter\.kind is lora"):
        start.understood(LoraSpec(start=path), rig.family, rig.source)
    with pytest.raises(UserError, match=r"no place in this model|does not fit"):
        other = rigs("sd1")
        understood(LycorisSpec(start=path), other.family, other.source)


def exported_loads(rig: Rig, adapter: Lycoris, whole: Tensor, folder: Path) -> None:
    """lycoris-lora makes of the file what was trained, where the journal says that it does."""
    own = [w for w in rig.exported(adapter, folder) if w.format in ("diffusers", "lycoris")]
    assert own and not any(w.problems for w in own)
    for written in own:
        other = fresh(rig)
        if written.format == "diffusers":
            rig.family.pipe(other.parts).load_lora_weights(
                str(written.path.parent), weight_name=written.path.name, **rig.family.lora_arguments
            )
        elif "lycoris-lora" in written.loads_in:
            network, _ = lycoris.create_lycoris_from_weights(1.0, str(written.path), other.parts.network)
            assert len(network.loras) == len(adapter.changes)
            network.apply_to()
            network.eval()
        else:
            with pytest.raises((TypeError, RuntimeError)):
                lycoris.create_lycoris_from_weights(1.0, str(written.path), other.parts.network)
            continue
        torch.testing.assert_close(question(other)(), whole, atol=1e-5, rtol=1e-5)


def test_it_stands_in_the_network_tree_with_dotted_names(rigs: Callable[[str], Rig]) -> None:
    rig = fresh(rigs("flux1"))
    adapter = attached(rig, spec_of("lokr", "flux1", targets=["attn.to_q"]))
    ours = {id(p) for p in adapter.parameters()}
    assert ours == {id(p) for p in rig.parts.network.parameters() if p.requires_grad}
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert "transformer.transformer_blocks.0.attn.to_q.lokr_w1" in adapter.state_dict()
    assert rig.parts.network.lycoris_net is not None


def test_checkpointed_activations_give_the_same_gradients(rigs: Callable[[str], Rig]) -> None:
    """What is drawn at random (dropout, DyLoRA's rank) is drawn alike again in the backward pass."""
    for name, more in (("dylora", {}), ("lokr", {"dropout": 0.3, "module_dropout": 0.3})):
        grads = []
        for checkpointing in (False, True):
            rig = fresh(rigs("flux1"))
            adapter = attached(rig, spec_of(name, "flux1", **more))
            with torch.no_grad():
                for p in adapter.parameters():
                    p.add_(torch.randn(p.shape, generator=generator(5)) * 0.1)
            if checkpointing:
                rig.parts.network.enable_gradient_checkpointing()
            rig.parts.network.train()
            shape = rig.case.shapes[0]
            torch.manual_seed(11)
            out = rig.family.predict(
                rig.parts.network, rig.latent(shape, 1), torch.tensor([0.5]), rig.cond(["a"], shape)
            )
            out.square().mean().backward()
            grads.append({n: p.grad for n, p in zip(adapter.names, adapter.parameters(), strict=True)})
        for key, plain in grads[0].items():
            assert (plain is None) == (grads[1][key] is None), key
            assert plain is None or plain.equal(grads[1][key]), key


def test_other_algorithms_by_pattern(rigs: Callable[[str], Rig]) -> None:
    rig = fresh(rigs("flux1"))
    others = {"*.ff.*": {"algorithm": "lokr", "factor": 4}, "*.to_v": {"algorithm": "ia3"}}
    adapter = attached(rig, spec_of("loha", "flux1", algorithms=others))
    kinds = {layer.module: layer.kind for layer in adapter.layers()}
    assert set(kinds.values()) == {"loha", "lokr", "ia3"}
    assert all(("ff." in m) == (k == "lokr") for m, k in kinds.items() if m.startswith("transformer_blocks"))
    with pytest.raises(UserError, match=r"adapter\.algorithms: \*\.nope fits none of the"):
        attached(fresh(rigs("flux1")), spec_of("loha", "flux1", algorithms={"*.nope": {}}))
    with pytest.raises(UserError, match=r"adapter\.tucker acts on convolutions"):
        attached(fresh(rigs("flux1")), spec_of("loha", "flux1", tucker=True))
    with pytest.raises(UserError, match=r"adapter\.conv_rank acts on convolutions"):
        attached(fresh(rigs("flux1")), spec_of("loha", "flux1", conv_rank=2))


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("int8", "lokr"), ("int8", "diag_oft"), ("int8_bnb", "loha"), ("int8_bnb", "locon-dora"), ("nf4", "lokr"),
        ("nf4", "locon-dora"), ("nf4", "diag_oft"), ("fp8", "lokr"), ("fp8", "glora"), ("fp8", "diag_oft"),
    ],
)  # fmt: skip
def test_it_trains_over_a_quantised_network(method: str, name: str, rigs: Callable[[str], Rig]) -> None:
    if method == "int8":
        pytest.importorskip("optimum.quanto")
    elif method != "fp8":
        pytest.importorskip("bitsandbytes")
    rig = fresh(rigs("flux1"))
    said: list[str] = []
    place = quantise.Place(method, torch.float32, torch.device("cpu"))
    with quantise.base(rig.family, rig.parts, place, [], lambda *_, **__: said.append(method)):
        adapter = attached(rig, spec_of(name, "flux1"))
    assert said
    rig.parts.network.enable_gradient_checkpointing()
    with adapter.disabled():
        base = question(rig)()
    # int8_bnb rounds what goes in as well, and with it the last digits
    torch.testing.assert_close(question(rig)(), base, atol=2e-3 if method == "int8_bnb" else 1e-5, rtol=1e-5)
    losses = trained(rig, adapter)
    assert sum(losses[-2:]) < sum(losses[:2]), losses
    whole, state = question(rig)(), adapter.state_dict()
    assert {v.dtype for v in state.values()} == {torch.float32}
    with adapter.disabled():
        assert question(rig)().equal(base)
    with torch.no_grad():
        for p in adapter.parameters():
            p.zero_()
    adapter.load_state_dict(state)
    assert question(rig)().equal(whole)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm", ["dylora", *(pytest.param(a, marks=pytest.mark.families) for a in ("lokr", "loha"))]
)
def test_a_resumed_run_is_the_same_to_the_last_bit(
    algorithm: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything that draws at random: dropouts, and DyLoRA's ranks."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    adapter = {"kind": "lycoris", "algorithm": algorithm, "rank": 4, "alpha": 2, "dropout": 0.1, "module_dropout": 0.1}
    settings = {
        "name": "half", "family": "flux1", "source": str(tiny("flux1")), "adapter": adapter,
        "options": {"max_tokens": 24}, "data": [{"path": str(pictures(tmp_path / "pictures", 3))}],
        "media": {"resolutions": [64]}, "train": {"steps": 6, "batch": 2, "lr": 1e-2, "precision": "bf16"},
        "extensions": [{"kind": "ema", "decay": 0.9}], "save": {"every": 3, "keep": 2},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    out = tmp_path / "run"
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(out)]) == 0
    last = out / "checkpoints" / "step-000006"
    [written] = [e for e in follow(out / "events.jsonl")[0] if e["kind"] == "export"]
    exported = out / written["path"]
    kept = tmp_path / "kept"
    last.rename(kept)
    file = load_file(exported)
    exported.unlink()
    assert main(["resume", str(out)]) == 0
    losses = [e for e in follow(out / "events.jsonl")[0] if e["kind"] == "step"]
    assert [e["step"] for e in losses] == [1, 2, 3, 4, 5, 6, 4, 5, 6]
    assert [e["loss"] for e in losses[3:6]] == [e["loss"] for e in losses[6:]]
    for one, two in ((load_file(kept / WEIGHTS), load_file(last / WEIGHTS)), (file, load_file(exported))):
        assert one.keys() == two.keys()
        assert all(v.equal(two[k]) for k, v in one.items())


def test_check_says_what_an_algorithm_lacks(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    settings = {
        "family": "flux1", "source": str(tiny("flux1")), "adapter": {"kind": "lycoris", "algorithm": "ia3", "alpha": 2},
        "options": {"max_tokens": 24}, "data": [{"path": str(pictures(tmp_path / "pictures", 1))}],
        "media": {"resolutions": [64]},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 1
    assert "adapter.alpha has no meaning for the algorithm ia3" in capsys.readouterr().out
