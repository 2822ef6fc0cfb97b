"""Every kind of adapter on a UNet, a two-stream and a one-stream transformer: what each promises."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.engine.test_runs import losses, pictures, result
from tests.families.case import SHORT, Rig
from tests.families.cases import all_cases
from tests.families.conftest import elsewhere  # noqa: F401  (a fixture)
from tuner import adapters, families, recipe
from tuner.__main__ import main
from tuner.adapters import lora
from tuner.adapters.peft import Reflected, ReflectedConv
from tuner.checkpoint import WEIGHTS
from tuner.errors import UserError
from tuner.events import follow
from tuner.formats.layers import Layer
from tuner.recipe import LoraSpec, PeftSpec, TrainSpec
from tuner.types import Batch, generator

FAMILIES = ["sd1", "flux1", "z_image"]
WIDE = {"sd1": "with-conv", "flux1": "all-linear", "z_image": "all-linear"}
"""Targets with everything: convolutions, layers with and without bias."""
BIASED = {"sd1": ["ff.net.2", "conv1"], "flux1": ["to_q", "ff.net.2"], "z_image": ["adaLN_modulation.0"]}
PATTERNS = {"sd1": ["to_q", "ff.net.2"], "flux1": ["to_q", "ff.net.2"], "z_image": ["to_q", "feed_forward.w2"]}
SPECS: dict[str, Callable[[str], LoraSpec | PeftSpec]] = {
    "lora": lambda f: LoraSpec(rank=4, alpha=2, targets=WIDE[f]),
    "dora": lambda f: LoraSpec(rank=4, alpha=6, dora=True, targets=WIDE[f]),
    "rslora": lambda f: LoraSpec(rank=8, alpha=3, rslora=True),
    "bias": lambda f: LoraSpec(rank=2, alpha=4, bias=True, targets=BIASED[f]),
    "gaussian": lambda f: LoraSpec(rank=2, init="gaussian", targets=WIDE[f]),
    "orthogonal": lambda f: LoraSpec(rank=2, alpha=3, init="orthogonal", targets=WIDE[f]),
    "pissa": lambda f: LoraSpec(rank=4, alpha=6, init="pissa", targets=WIDE[f]),
    "pissa-fast": lambda f: LoraSpec(rank=4, init="pissa", init_iterations=4, rslora=True),
    "olora": lambda f: LoraSpec(rank=4, alpha=2, init="olora", targets=WIDE[f]),
    "patterns": lambda f: LoraSpec(
        rank=2, ranks={PATTERNS[f][1]: 5, "to_q": 3}, alphas={"to_q": 7.0}, targets=PATTERNS[f], dora=f == "flux1"
    ),
    "ia3": lambda f: PeftSpec(algorithm="ia3", targets=WIDE[f]),
    "miss": lambda f: PeftSpec(algorithm="miss", rank=3, targets="attention+feed-forward"),
    "hra": lambda f: PeftSpec(algorithm="hra", rank=4, targets=WIDE[f]),
}


@dataclass
class Bench:
    """A tiny model with an adapter, and fixed inputs."""

    rig: Rig
    adapter: Any
    base: Any
    """The network as it was, without the adapter."""

    def __post_init__(self) -> None:
        shape = self.rig.case.shapes[0]
        self.x, self.t = self.rig.latent(shape, 1, 3), torch.tensor([0.4])
        self.cond = self.rig.cond([SHORT], shape)
        self.z = self.rig.latent(shape, 1, 8)

    def answer(self, network: Any = None) -> Tensor:
        """What a network (ours) answers to the fixed input."""
        network = network or self.rig.parts.network
        with torch.no_grad():
            return self.rig.family.predict(network.eval(), self.x, self.t, self.cond)

    def train(self, steps: int, lr: float = 1e-2) -> tuple[float, float]:
        """Train on one item; the loss at fixed noise before and after."""
        spec = TrainSpec(steps=steps, lr=lr, precision="fp32", optimizer_options={"weight_decay": 0})
        trainer = self.rig.trainer(self.adapter, spec)
        batch = Batch(self.z.expand(4, *self.z.shape[1:]), self.rig.cond([SHORT] * 4, self.rig.case.shapes[0]),
                      ("a",) * 4, (0, 1, 2, 3), 4)  # fmt: skip

        def measured() -> float:
            noise = torch.randn(batch.latents.shape, generator=generator(5))
            noised = self.rig.objective.noised(batch.latents, noise, torch.tensor([0.2, 0.4, 0.6, 0.8]))
            with torch.no_grad():
                return float(trainer.score(trainer.predict(noised.x, noised.t, batch.cond), noised, batch.cond).mean())

        before = measured()
        self.rig.parts.network.train()
        for _ in range(steps):
            trainer.step([batch])
        self.rig.parts.network.eval()
        return before, measured()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny checkpoint per family."""
    made = {}
    for name in FAMILIES:
        made[name] = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            all_cases()[name].build(made[name])
    return made


RIGS: dict[str, Rig] = {}
FRESH: dict[str, Any] = {}


def bench(folders: dict[str, Path], family: str, spec: LoraSpec | PeftSpec, seed: int = 0) -> Bench:
    """A fresh network with an adapter of this kind; everything else of the family's is loaded once."""
    if family not in RIGS:
        RIGS[family] = Rig(all_cases()[family], folders[family])
        FRESH[family] = copy.deepcopy(RIGS[family].parts.network)
    rig = RIGS[family]
    rig.parts.components[rig.family.denoiser] = copy.deepcopy(FRESH[family])
    torch.manual_seed(seed)
    adapter = adapters.build(spec, rig.family, rig.parts)
    adapters.begin(adapter, spec, rig.family, rig.source)
    return Bench(rig, adapter, FRESH[family])


def merged(base: Any, layers: list[Layer]) -> Any:
    """A copy of the base with every layer's change added to its weights."""
    network = copy.deepcopy(base)
    with torch.no_grad():
        for layer in layers:
            module = network.get_submodule(layer.module)
            module.weight += layer.delta(module.weight)
            if (bias := layer.bias()) is not None:
                module.bias += bias
    return network


def close(a: Tensor, b: Tensor, changed: float = 1.0) -> None:
    """Equal but for rounding, measured by how much the adapter changes."""
    wrong = (a - b).abs().max().item()
    assert wrong < 2e-5 * max(1.0, a.abs().max().item()), wrong
    assert wrong < 1e-2 * changed, (wrong, changed)


RELATED = {"gaussian", "orthogonal", "pissa-fast", "olora", "rslora"}
"""Forms of a kind that is proven anyway: by default on one family only."""
ALL = [
    pytest.param(kind, family, marks=[pytest.mark.slow] if kind in RELATED and family != "flux1" else [])
    for kind in SPECS
    for family in FAMILIES
]


@pytest.mark.parametrize(("kind", "family"), ALL)
def test_a_kind_keeps_its_promises(kind: str, family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    spec = SPECS[kind](family)
    on = bench(folders, family, spec)
    base = on.answer(on.base)
    close(on.answer(), base)
    before = on.adapter.state_dict()
    first, last = on.train(8, 1e-1 if kind == "ia3" else 2e-2)
    after = on.adapter.state_dict()
    assert last < 0.98 * first, "nothing was learned"
    still = [k for k in after if after[k].equal(before[k])]
    assert not still, still

    live = on.answer()
    changed = (live - base).abs().max().item()
    assert changed > 1e-3
    with on.adapter.disabled():
        close(on.answer(), base, changed)
    with on.adapter.scaled(0.5):
        half = on.answer()
    assert (half - live).abs().max() > 1e-2 * changed
    with on.adapter.scaled(0.0):
        close(on.answer(), base, changed)
    assert on.answer().equal(live)
    layers = on.adapter.layers()
    close(on.answer(merged(on.base, layers)), live, changed)

    written = on.rig.exported(on.adapter, tmp_path)[0]
    again = bench(folders, family, spec, seed=9)
    again.adapter.load_state_dict(after)
    assert again.answer().equal(live)
    assert all(again.adapter.state_dict()[k].equal(v) for k, v in after.items())
    rig = again.rig
    rig.parts.components[rig.family.denoiser] = copy.deepcopy(on.base)
    lora.attach(rig.family, rig.parts, written.path, 1.0)
    close(again.answer(), live, changed)
    rig.parts.components[rig.family.denoiser] = copy.deepcopy(on.base)
    lora.attach(rig.family, rig.parts, written.path, 0.0)
    close(again.answer(), base, changed)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "family"),
    [
        pytest.param(kind, family, marks=[] if kind in ("dora", "pissa") else [pytest.mark.slow])
        for kind in ("dora", "pissa", "rslora", "patterns", "hra")
        for family in FAMILIES
    ],
)
def test_a_kind_in_another_process(
    kind: str,
    family: str,
    folders: dict[str, Path],
    tmp_path: Path,
    elsewhere: Callable[..., Tensor],  # noqa: F811
) -> None:
    """The official pipeline, alone with the file, draws what it draws around the trained network."""
    on = bench(folders, family, SPECS[kind](family))
    on.train(6)
    rig, shape = on.rig, on.rig.case.shapes[0]
    drawn = {"num_inference_steps": 2}
    part, kept = rig.family.denoiser, rig.denoiser

    def draw(network: Any) -> Tensor:
        setattr(rig.official, part, network)
        try:
            return rig.case.output(rig.case.run(rig.official, [SHORT], shape, **drawn, generator=generator(11)))
        finally:
            setattr(rig.official, part, kept)

    base, with_it = draw(on.base), draw(rig.parts.network)
    path = rig.exported(on.adapter, tmp_path)[0].path
    there = elsewhere(family, folders[family], path, rig.family.lora_arguments)
    changed = (with_it - base).abs().max().item()
    assert changed > 1e-4
    assert (there - with_it).abs().max().item() < max(1e-5, 1e-2 * changed)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_first_factors_leave_the_base_as_it_is(init: str, folders: dict[str, Path]) -> None:
    """They are those of peft, which changes the base instead, and train as there."""
    on = bench(folders, "flux1", LoraSpec(rank=4, alpha=6, init=init))
    own = {n.replace(".base_layer", ""): p for n, p in on.rig.parts.network.named_parameters() if "lora_" not in n}
    assert all(p.equal(dict(on.base.named_parameters())[n]) for n, p in own.items())
    theirs = copy.deepcopy(on.base).requires_grad_(False)
    config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=init, target_modules=list(on.adapter.modules))
    peft.inject_adapter_in_model(config, theirs)
    gradients = []
    for network in (on.rig.parts.network, theirs):
        on.rig.family.predict(network, on.x, on.t, on.cond).square().sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.requires_grad])
    for ours, other in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", [nn.Linear(24, 16), nn.Conv2d(6, 8, 3, stride=2, padding=1)], ids=["linear", "conv"])
def test_reflections_of_the_input_are_those_of_peft_of_the_weight(layer: nn.Module) -> None:
    """Value and gradient, with reflections that do not commute; peft's own forward is the oracle."""
    torch.manual_seed(0)
    network = nn.Sequential(copy.deepcopy(layer)).requires_grad_(False)
    peft.inject_adapter_in_model(peft.HRAConfig(r=4, target_modules=["0"]), network)
    x, found = torch.randn(2, 6, 9, 9) if isinstance(layer, nn.Conv2d) else torch.randn(5, 24), []
    u = torch.randn_like(network[0].hra_u["default"])
    for ours in (False, True):
        if ours:
            network[0].__class__ = Reflected if isinstance(layer, nn.Linear) else ReflectedConv
        network[0].hra_u["default"] = nn.Parameter(u.clone())
        out = network(x)
        out.square().sum().backward()
        found.append((out, network[0].hra_u["default"].grad))
    assert (found[0][0] - layer(x)).abs().max() > 0.1
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_a_run_goes_on_from_an_adapter(folders: dict[str, Path], tmp_path: Path) -> None:
    """Ranks, alphas, layers and values are the file's; what contradicts it is refused."""
    from tuner.adapters.start import understood

    on = bench(folders, "flux1", LoraSpec(rank=2, ranks={"to_q": 4}, alphas={"to_k": 5.0}, dora=True))
    on.train(4)
    live, family, source = on.answer(), on.rig.family, on.rig.source
    path = str(on.rig.exported(on.adapter, tmp_path)[0].path)
    spec = understood(LoraSpec(start=path), family, source)
    assert understood(LoraSpec(**spec.model_dump()), family, source) == spec, "a resumed run reads its own recipe again"
    again = bench(folders, "flux1", spec, seed=5)
    assert again.adapter.shapes == on.adapter.shapes
    close(again.answer(), live)
    with pytest.raises(UserError, match=r"adapter\.rank and alpha make 8 .* has 2"):
        understood(LoraSpec(start=path, rank=8), family, source)
    with pytest.raises(UserError, match=r"adapter\.dora is False"):
        understood(LoraSpec(start=path, dora=False), family, source)
    with pytest.raises(UserError, match=r"adapter\.start does not fit adapter\.targets"):
        few = understood(LoraSpec(start=path, targets=["to_q", "to_k"]), family, source)
        bench(folders, "flux1", few.model_copy(update={"ranks": {"to_q": 4}}))


def test_an_adapter_of_another_family_is_no_start(folders: dict[str, Path], tmp_path: Path) -> None:
    from tuner.adapters.start import understood

    on = bench(folders, "sd1", LoraSpec(rank=2))
    path = str(on.rig.exported(on.adapter, tmp_path)[0].path)
    flux = bench(folders, "flux1", LoraSpec(rank=2)).rig
    with pytest.raises(UserError, match=r"does not fit FLUX\.1"):
        understood(LoraSpec(start=path), flux.family, flux.source)
    other = bench(folders, "z_image", LoraSpec(rank=2))
    path = str(other.rig.exported(other.adapter, tmp_path)[0].path)
    with pytest.raises(UserError, match=r"does not fit|no place in this model"):
        bench(folders, "flux1", understood(LoraSpec(start=path), flux.family, flux.source))


@pytest.mark.parametrize(
    ("family", "spec", "sentence"),
    [
        ("flux1", LoraSpec(targets=["nothing"]), r"adapter\.targets: nothing matches no layer"),
        ("flux1", LoraSpec(ranks={"nothing": 2}), r"adapter\.ranks: 'nothing' matches none of the layers"),
        ("flux1", LoraSpec(alphas={"nothing": 2.0}), r"adapter\.alphas: 'nothing' matches none"),
        ("sd1", LoraSpec(bias=True), r"adapter\.bias is true, but \d+ of the layers have none"),
        ("flux1", LoraSpec(rank=64, init="pissa"), r"adapter\.init is pissa, but .* has no 64 directions"),
        ("sd1", PeftSpec(algorithm="miss", rank=4, targets=["conv1"]), "miss, which has no form for convolutions"),
    ],
)
def test_what_fits_no_layer_is_said(family: str, spec: Any, sentence: str, folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=sentence):
        bench(folders, family, spec)


@pytest.mark.parametrize(
    "adapter",
    [
        {"rank": 4, "alpha": 6.0, "dora": True, "dropout": 0.1, "ranks": {"to_q": 2}},
        pytest.param({"rank": 4, "init": "pissa", "init_iterations": 4, "rslora": True}, marks=pytest.mark.families),
    ],
    ids=["dora", "pissa"],
)
def test_a_run_resumes_bit_for_bit(
    adapter: dict[str, Any], folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its last checkpoint it does the last steps again: same losses, same file."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    settings = {
        "name": "again", "family": "flux1", "source": str(folders["flux1"]), "options": {"max_tokens": 24},
        "adapter": adapter, "data": [{"path": str(pictures(tmp_path / "pictures", 2))}],
        "media": {"resolutions": [64]}, "train": {"steps": 4, "lr": 1e-2, "precision": "fp32"}, "save": {"every": 2},
        "extensions": [{"kind": "ema", "decay": 0.9}],
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    out = tmp_path / "run"
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(out)]) == 0
    told, written = losses(out), result(out)
    shutil.rmtree(out / "checkpoints" / "step-000004")
    assert main(["resume", str(out)]) == 0
    assert losses(out) == told
    assert result(out) == written


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ({"rank": 3, "alpha": 5.0}, {}, {"rank": 3, "alpha": 5.0}),
        ({"kind": "lycoris", "rank": 2, "alpha": 4.0}, {"kind": "lycoris"}, {"algorithm": "lokr", "rank": 2}),
    ],
    ids=["lora", "lokr"],
)
def test_a_run_starts_from_a_run(
    first: dict[str, Any],
    second: dict[str, Any],
    kept: dict[str, Any],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`adapter.start` is a run folder beside the recipe; its first loss is that of the adapter as it stood. It resumes
    to the last bit."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    common = {
        "family": "flux1", "source": str(folders["flux1"]), "options": {"max_tokens": 24},
        "data": [{"path": str(pictures(tmp_path / "pictures", 2))}], "media": {"resolutions": [64]},
        "train": {"steps": 3, "lr": 5e-2, "precision": "fp32"}, "validate": {"every": 3}, "save": {"every": 2},
    }  # fmt: skip
    for name, adapter in (("one", first), ("two", {**second, "start": "one"})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**common, "name": name, "adapter": adapter}))
        assert main(["run", str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path / name)]) == 0
    seen = [[e["loss"] for e in follow(tmp_path / n / "events.jsonl")[0] if e["kind"] == "validation"] for n in
            ("one", "two")]  # fmt: skip
    assert seen[0][-1] == pytest.approx(seen[1][0], rel=1e-6)
    assert seen[0][0] != pytest.approx(seen[0][-1], rel=1e-3)
    written = yaml.safe_load((tmp_path / "two" / "recipe.yaml").read_text())["adapter"]
    assert {k: written[k] for k in kept} == kept
    told, last = losses(tmp_path / "two"), tmp_path / "two" / "checkpoints" / "step-000003"
    weights = load_file(last / WEIGHTS)
    shutil.rmtree(last)
    assert main(["resume", str(tmp_path / "two")]) == 0
    assert losses(tmp_path / "two") == told
    again = load_file(last / WEIGHTS)
    assert again.keys() == weights.keys() and all(v.equal(weights[k]) for k, v in again.items())


@pytest.mark.parametrize(
    ("adapter", "sentence"),
    [
        ({"bias": True, "dora": True}, "adapter.bias and adapter.dora exclude each other"),
        ({"bias": True, "init": "gaussian"}, "adapter.bias needs adapter.init=default, it is gaussian"),
        ({"dora": True, "init": "olora"}, "leaves the base as it is, but adapter.init is olora"),
        ({"init": "orthogonal", "ranks": {"to_q": 3}}, "adapter.init=orthogonal needs even ranks, 3 is odd"),
        ({"init_iterations": 4}, "adapter.init_iterations belongs to adapter.init=pissa"),
        ({"start": "x", "init": "pissa"}, "adapter.start gives the first values"),
        ({"start": "x", "rslora": True}, "adapter.start brings its own scale"),
        ({"ranks": {"(": 3}}, r"adapter.ranks: '(' is no regular expression"),
        ({"kind": "peft", "algorithm": "ia3", "rank": 4}, "adapter.rank is 4, but ia3 has no rank"),
        ({"kind": "peft", "algorithm": "hra", "rank": 5}, "adapter.rank is 5; hra begins without effect only"),
    ],
)
def test_contradictions_are_refused_with_the_reason(adapter: dict[str, Any], sentence: str) -> None:
    made = recipe.parse({"family": "flux1", "source": "any", "adapter": adapter, "data": [{"path": "any"}]})
    said = adapters.refuses(families.get("flux1")(), made)
    assert said is not None
    assert sentence in said


@pytest.mark.parametrize(
    ("adapter", "sentence"),
    [
        ({"rank": 0}, "adapter.rank is 0, but "),
        ({"alpha": 0}, "adapter.alpha is 0, but "),
        ({"ranks": {"to_q": 0}}, "adapter.ranks.to_q is 0, but "),
        ({"alphas": {"to_q": 0}}, "adapter.alphas.to_q is 0, but "),
        ({"kind": "peft", "rank": 0}, "adapter.rank is 0, but "),
        ({"kind": "peft", "algorithm": "vera"}, "adapter.algorithm is 'vera', but "),
    ],
)
def test_rank_and_alpha_are_above_zero(adapter: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.parse({"family": "flux1", "source": "any", "adapter": adapter, "data": [{"path": "any"}]})
    assert sentence in str(caught.value)


def test_the_catalogue_lists_every_kind_and_who_refuses_it() -> None:
    from tuner import catalog

    rows = {row["kind"]: row for row in catalog.describe()["adapters"]}
    assert set(rows) == set(adapters.KINDS)
    assert all(row["title"] and row["description"] and row["schema"]["properties"] for row in rows.values())
    assert {"DoRA", "PiSSA"} <= {v["title"] for v in rows["lora"]["variants"]}
    assert not rows["lora"]["refused"]
