"""Frozen bases and text encoders in fewer bits: what they cost in loss and picture, and what they save."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from torch import nn

from tests.engine.test_runs import losses, result
from tests.families.case import SHORT, Case, Rig, show
from tests.families.cases import all_cases
from tuner import adapters, assemble, device, families, libraries, prepare, quantise, recipe
from tuner.__main__ import main
from tuner.errors import UserError
from tuner.events import follow
from tuner.formats.apply import plain_weight
from tuner.quantise import METHODS, Place
from tuner.recipe import LoraSpec, LycorisSpec, PeftSpec, TrainSpec
from tuner.types import Batch, Prompt

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "recipes" / "demo" / "style-lora.yaml"
STEPS = 12
CPU = torch.device("cpu")

# Largest distance of the loss of any of 12 steps from that of the unquantised run, |q - plain| / plain; about three
# times what was measured (0.0014, 0.0013, 0.0083, 0.0050, 0.046). It is what rounding does to the network's answer:
# the runs see the same items, noise and t. Then the largest mean distance of the picture, in 255ths, from what the
# adapter draws on the plain base (0.19, 0.42, 0.80, 0.64, 2.3 were measured), and the share of the base's bytes.
BOUNDS = {
    "int8": (0.005, 0.6, 0.30),
    "int8_bnb": (0.005, 1.3, 0.30),
    "fp8_quanto": (0.025, 2.5, 0.30),
    "fp8": (0.015, 2.0, 0.30),
    "nf4": (0.12, 7.0, 0.18),
    "int4": (0.08, 7.0, 0.19),
    "int8_torchao": (0.005, 0.6, 0.30),
    "fp8_torchao": (0.025, 2.5, 0.30),
}
SLOW = [pytest.mark.slow]


def also_slow(*methods: str, slow: Sequence[str] = ("int4",)) -> list[Any]:
    """Parameters, of which int4 (compiles for a minute at first use) is no default test."""
    return [pytest.param(m, marks=SLOW if m in slow else []) for m in methods]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """run(method) → folder of a finished run of the demo's base; run once each, with one cache for all."""
    folder, done = tmp_path_factory.mktemp("quantised"), {}

    def get(method: str) -> Path:
        if method not in done:
            settings = [
                f"memory.quantise={method}", f"memory.checkpointing={method == 'fp8'}", f"train.steps={STEPS}",
                "train.batch=2", "train.warmup=0", "save.every=6", f"validate.every={STEPS}", "validate.steps=4",
                "validate.prompts=['dolphin, fluent style']",
            ]  # fmt: skip
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TUNER_HOME", str(folder / "home"))
                assert main(["run", str(DEMO), *settings, "--out", str(folder / method)]) == 0
            done[method] = folder / method
        return done[method]

    return get


@pytest.fixture(scope="module")
def plain() -> Any:
    """The official pipeline on the base as it is."""
    pipe = FluxPipeline.from_pretrained(ROOT / "recipes" / "demo" / "base")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """All of that kind in a run's journal."""
    return [e for e in follow(folder / "events.jsonl")[0] if e["kind"] == kind]


@dataclass
class Row:
    """What a run on a quantised base came to. loss: largest relative distance of a step's loss from the plain base's.
    picture: mean distance, in 255ths, of its last sample from what the export draws on the plain base."""

    method: str
    before: int
    bytes: int
    loss: float
    picture: float
    verified: bool
    resumed: bool | None = None

    def __str__(self) -> str:
        held = f"{self.bytes / 1e6:5.1f} of {self.before / 1e6:.1f} MB ({self.bytes / self.before:.3f})"
        again = {True: "bit by bit", False: "NO", None: "not tried"}[self.resumed]
        export = "verified" if self.verified else "NO"
        return (
            f"{self.method:10} base {held}  loss {self.loss:.4f}  picture {self.picture:.2f}  "
            f"resumed {again}  export {export}"
        )

    def check(self) -> None:
        """Within what `BOUNDS` says."""
        far, pixels, share = BOUNDS[self.method]
        assert 0 < self.loss < far
        assert self.picture < pixels
        assert self.bytes / self.before < share
        assert self.verified
        assert self.resumed is not False


def row(method: str, run: Callable[..., Path], plain: Any) -> Row:
    """The run's figures; its memory is that which was predicted."""
    ours, exact = losses(run(method)), losses(run("none"))
    said = events(run(method), "quantised")[0]
    assert said["method"] == method and said["library"] and said["reason"] and said["layers"] == 56
    whole, small = predicted(method)
    assert said["before"] == pytest.approx(whole, rel=1e-3)
    assert said["bytes"] == pytest.approx(small, rel=0.01)

    plain.load_lora_weights(str(run(method) / "export" / "diffusers"))
    drawn = plain(
        "dolphin, fluent style", negative_prompt="", num_inference_steps=4, true_cfg_scale=1.5, width=64, height=64,
        max_sequence_length=16, generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    plain.unload_lora_weights()
    sample = Image.open(run(method) / "samples" / f"step-{STEPS:06d}-00.png")
    return Row(
        method,
        said["before"],
        said["bytes"],
        max(abs(ours[i] - exact[i]) / exact[i] for i in exact),
        float(np.abs(np.asarray(drawn).astype(int) - np.asarray(sample).astype(int)).mean()),
        events(run(method), "export")[0]["verified"],
    )


def predicted(method: str) -> tuple[int, int]:
    """Bytes of the demo's denoiser from its configuration, plain and quantised."""
    ready = prepare.prepare(recipe.load(DEMO, [f"memory.quantise={method}"]))
    return ready.weights[0]["before"], ready.weights[0]["bytes"]


def resumes(done: Path, again: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the run, as if killed behind the checkpoint of step 6 and resumed, ends with the same bits."""
    monkeypatch.setenv("TUNER_HOME", str(done.parent / "home"))
    shutil.copytree(done, again)
    shutil.rmtree(again / "checkpoints" / f"step-{STEPS:06d}")
    lines = (again / "events.jsonl").read_text().splitlines(keepends=True)
    last = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == "checkpoint")
    (again / "events.jsonl").write_text("".join(lines[: last + 1]))
    assert main(["resume", str(again)]) == 0
    return losses(again) == losses(done) and result(again) == result(done)


@pytest.mark.parametrize("method", ["int8", "int8_bnb", "fp8", "nf4"])
def test_a_run_on_a_quantised_base(method: str, run: Callable[..., Path], plain: Any) -> None:
    """Losses near those of the plain base, memory as predicted, and the export draws the same on the plain base."""
    found = row(method, run, plain)
    show(str(found))
    found.check()


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_it_resumes_bit_by_bit(
    method: str, run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resumes(run(method), tmp_path / "run", monkeypatch)


@pytest.mark.slow
def test_every_method_in_one_table(
    run: Callable[..., Path], plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each method that runs on this device: loss, memory, picture, resume and export on the embedded model; and why the
    others do not."""
    where, found = device.pick(), []
    for method in METHODS:
        if reason := quantise.unfit(method, where):
            show(f"{method:10} refused: {reason}")
            [error] = quantise.problems(recipe.load(DEMO, [f"memory.quantise={method}"]), where)
            assert error.level == "error" and reason in error.text
            continue
        found.append(row(method, run, plain))
        found[-1].resumed = resumes(run(method), tmp_path / method, monkeypatch)
        show(str(found[-1]))
    for each in found:
        each.check()


# -- three sorts of networks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """folder(case) → its tiny checkpoint, built once."""
    built: dict[str, Path] = {}

    def get(case: Case) -> Path:
        if case.name not in built:
            built[case.name] = tmp_path_factory.mktemp(case.name)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                case.build(built[case.name])
        return built[case.name]

    return get


def trained(case: Case, path: Path, method: str) -> tuple[Rig, Any, list[float]]:
    """(models with a LoRA on a base that is held so, the LoRA, its losses)."""
    rig = Rig(case, path)
    torch.manual_seed(0)
    with quantise.base(rig.family, rig.parts, Place(method, torch.float32, CPU), (), lambda *_, **__: None):
        adapter = adapters.build(LoraSpec(rank=4, alpha=8), rig.family, rig.parts)
    trainer = rig.trainer(adapter, TrainSpec(steps=4, lr=1e-2, precision="fp32"))
    shape = case.shapes[0]
    batch = Batch(rig.latent(shape, 1, 8), rig.cond([SHORT], shape), ("a",), (0,), 1)
    rig.parts.network.train()
    losses = [trainer.step([batch])["loss"] for _ in range(4)]
    rig.parts.network.eval()
    return rig, adapter, losses


@pytest.mark.parametrize("name", ["sd1", "sd3", "pixart_sigma"])
@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_unet_two_streams_and_one(name: str, method: str, folder: Callable[[Case], Path], tmp_path: Path) -> None:
    case = all_cases()[name]
    _, _, exact = trained(case, folder(case), "none")
    rig, adapter, ours = trained(case, folder(case), method)
    assert ours != exact
    assert ours == pytest.approx(exact, rel=0.005 if method == "int8" else 0.1)
    shape = case.shapes[0]
    x, t, cond = rig.latent(shape, 1, 3), torch.tensor([0.5]), rig.cond([SHORT], shape)

    def answer(rig: Rig) -> torch.Tensor:
        with torch.no_grad():
            return rig.family.predict(rig.parts.network, x, t, cond)

    with adapter.disabled():
        bare = answer(rig)
    assert not torch.allclose(bare, answer(rig))
    # another process's network: quantised anew, with the state of the first
    other = Rig(case, folder(case))
    with quantise.base(other.family, other.parts, Place(method, torch.float32, CPU), (), lambda *_, **__: None):
        second = adapters.build(LoraSpec(rank=4, alpha=8), other.family, other.parts)
    second.load_state_dict(adapter.state_dict())
    assert answer(other).equal(answer(rig))
    assert not any(w.problems for w in rig.exported(adapter, tmp_path))


KINDS: dict[str, LoraSpec | PeftSpec | LycorisSpec] = {
    "LoRA": LoraSpec(rank=4, alpha=8),
    "orthogonal": LoraSpec(rank=4, alpha=3, init="orthogonal"),
    "PiSSA": LoraSpec(rank=4, alpha=6, init="pissa"),
    "fast PiSSA": LoraSpec(rank=4, init="pissa", init_iterations=4, rslora=True),
    "OLoRA": LoraSpec(rank=4, alpha=2, init="olora"),
    "DoRA": LoraSpec(rank=4, alpha=6, dora=True),
    "IA3 (peft)": PeftSpec(algorithm="ia3"),
    "MiSS": PeftSpec(algorithm="miss", rank=3),
    "HRA": PeftSpec(algorithm="hra", rank=4),
    "LoCon": LycorisSpec(algorithm="locon", rank=4, alpha=2),
    "LoCon, DoRA": LycorisSpec(algorithm="locon", rank=4, alpha=2, dora=True),
    "LoHa": LycorisSpec(algorithm="loha", rank=4, alpha=2),
    "LoKr": LycorisSpec(algorithm="lokr", rank=2, alpha=4),
    "DyLoRA": LycorisSpec(algorithm="dylora", rank=4, alpha=2, block_size=4),
    "IA3": LycorisSpec(algorithm="ia3"),
    "diag-OFT": LycorisSpec(algorithm="diag_oft", rank=4),
    "BOFT": LycorisSpec(algorithm="boft", rank=256),
    "GLoRA": LycorisSpec(algorithm="glora", rank=4, alpha=2),
    "full difference": LycorisSpec(algorithm="full"),
}
RATES = {"IA3 (peft)": 1e-1, "IA3": 1e-1, "LoKr": 1e-1}
SHOWN = {
    ("int8", "OLoRA"), ("int8", "HRA"), ("nf4", "PiSSA"), ("nf4", "IA3 (peft)"), ("fp8", "PiSSA"), ("fp8", "MiSS"),
    ("fp8_quanto", "DoRA"), ("int8_bnb", "LoKr"), ("nf4", "diag-OFT"),
}  # fmt: skip
"""Of every kind on every base, those in the default run."""


def refused(method: str, spec: Any) -> str:
    """What `tuner check` says against a kind on a base, "" if nothing."""
    asked = recipe.load(DEMO)
    memory = asked.memory.model_copy(update={"quantise": method})
    asked = asked.model_copy(update={"adapter": spec, "memory": memory})
    return quantise._refused(method, spec) or adapters.refuses(families.get("flux1")(), asked) or ""


def kinds_on_bases() -> list[Any]:
    """Every kind on every base, but for what is refused; int4 compiles for a minute at first use."""
    found = []
    for method in METHODS:
        for kind, spec in KINDS.items():
            if refused(method, spec):
                continue
            marks = [] if (method, kind) in SHOWN else [pytest.mark.slow if method == "int4" else pytest.mark.families]
            found.append(pytest.param(method, kind, marks=marks, id=f"{method}-{kind}"))
    return found


def test_what_is_refused_of_every_kind_on_every_base() -> None:
    """Whatever is not proven below is refused, with the reason and a way out."""
    found = {(m, kind): said for m in METHODS for kind, spec in KINDS.items() if (said := refused(m, spec))}
    other = {kind for kind, spec in KINDS.items() if spec.kind != "lora"}
    torchao = {(method, kind) for method in ("int8_torchao", "fp8_torchao") for kind in other}
    dora = {("fp8", "DoRA"), ("int8_bnb", "DoRA"), ("fp8", "LoCon, DoRA")}
    assert set(found) == torchao | dora | {(method, "full difference") for method in METHODS}
    assert all("take " in said or "turn" in said or "set" in said for said in found.values()), found
    assert {m for m, about in METHODS.items() if "controlnet" not in about.adapters} == {"int8_torchao", "fp8_torchao"}


def fits_here(method: str) -> None:
    """Skip what this device or environment lacks, with the reason that `tuner check` gives."""
    if reason := quantise.unfit(method, device.pick()):
        pytest.skip(reason)


@pytest.mark.parametrize(("method", "kind"), kinds_on_bases())
def test_every_kind_over_a_quantised_base(
    method: str, kind: str, folder: Callable[[Case], Path], tmp_path: Path
) -> None:
    """It begins as that base answers, trains, is taken back by a base that is quantised anew, and is exported."""
    fits_here(method)
    case = all_cases()["flux1"]
    shape, spec = case.shapes[0], KINDS[kind]
    answers, rig, adapter = [], Rig(case, folder(case)), None
    x, t, cond = rig.latent(shape, 1, 3), torch.tensor([0.5]), rig.cond([SHORT], shape)

    def ask(rig: Rig) -> torch.Tensor:
        with torch.no_grad():
            return rig.family.predict(rig.parts.network.eval(), x, t, cond)

    def held() -> tuple[Rig, Any]:
        rig = Rig(case, folder(case))
        torch.manual_seed(len(answers))
        with quantise.base(rig.family, rig.parts, Place(method, torch.float32, CPU), (), lambda *_, **__: None):
            return rig, adapters.build(spec, rig.family, rig.parts)

    rig, adapter = held()
    with adapter.disabled():
        base = ask(rig)
    # int8_bnb rounds what goes in as well, and with it the last digits
    assert (ask(rig) - base).abs().max() < (5e-3 if method == "int8_bnb" else 2e-5) * base.abs().max()
    trainer = rig.trainer(adapter, TrainSpec(steps=6, lr=RATES.get(kind, 1e-2), precision="fp32"))
    batch = Batch(rig.latent(shape, 1, 8), rig.cond([SHORT], shape), ("a",), (0,), 1)
    noised = trainer.draw(batch)
    trainer.draw = lambda _: noised  # the same question each time, so that the loss tells
    rig.parts.network.train()
    said = [trainer.step([batch])["loss"] for _ in range(6)]
    assert said[-1] < 0.99 * said[0], said
    live = ask(rig)
    with adapter.disabled():
        assert ask(rig).equal(base)
    answers.append(live)
    other, second = held()
    second.load_state_dict(adapter.state_dict())
    assert ask(other).equal(live)
    written = rig.exported(adapter, tmp_path)
    assert written and not any(w.problems for w in written)


# -- text encoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "far"),
    [
        ("int8", 0.02), ("nf4", 0.25), ("fp8", 0.12), ("fp8_quanto", 0.1), ("int8_bnb", 0.05), ("int8_torchao", 0.02),
        ("fp8_torchao", 0.1), pytest.param("int4", 0.25, marks=SLOW),
    ],
)  # fmt: skip
def test_text_encoders(method: str, far: float) -> None:
    """What they say of a caption stays near, they are smaller, and none is trained."""
    fits_here(method)
    ready = prepare.prepare(recipe.load(DEMO, [f"memory.quantise_text={method}"]))
    said: list[dict[str, Any]] = []

    def embeds(method: str) -> torch.Tensor:
        place = Place(method, torch.float32, CPU)
        parts = quantise.encoders(
            ready.family, ready.source, ready.family.text_parts, place, lambda _, **f: said.append(f)
        )
        assert not any(p.requires_grad for c in parts.components.values() if isinstance(c, nn.Module)
                       for p in c.parameters())  # fmt: skip
        with torch.no_grad():
            return ready.family.encode_text(parts, [Prompt("rocket, fluent style")])[0]["embeds"]

    exact, ours = embeds("none"), embeds(method)
    distance = ((ours - exact).norm() / exact.norm()).item()
    sys.stdout.write(f"\n{method}: text {distance:.4f}\n")
    assert 0 < distance < far
    assert [f["part"] for f in said] == ["text_encoder", "text_encoder_2"]
    assert [(r["part"], r["bytes"]) for r in ready.weights[1:]] == [
        (f["part"], pytest.approx(f["bytes"], rel=0.02)) for f in said
    ]


@pytest.mark.families
@pytest.mark.parametrize("method", ["int8", "fp8"])
@pytest.mark.parametrize(
    "name", [n for n, c in all_cases().items() if hasattr(c, "millions") and not n.startswith("omnigen")]
)
def test_text_encoders_of_every_family(name: str, method: str, folder: Callable[[Case], Path]) -> None:
    """Each family's encoders, held so, say nearly the same of a caption; what stands beside them stays as it is."""
    case, said = all_cases()[name], []
    rig, shape = Rig(case, folder(case)), case.shapes[0]
    exact = rig.cond([SHORT], shape)
    place = Place(method, torch.float32, CPU)
    parts = quantise.encoders(rig.family, rig.source, rig.family.text_parts, place, lambda _, **f: said.append(f))
    assert [f["part"] for f in said] == list(prepare.encoders(rig.family, rig.source))
    assert all(f["bytes"] < f["before"] for f in said)
    rig.parts.components |= parts.components
    ours = rig.cond([SHORT], shape)
    far = {
        k: max(
            (
                ((a - b).norm() / b.norm().clamp_min(1e-9)).item()
                for a, b in zip(tensors(ours[k]), tensors(v), strict=True)
            ),
            default=0.0,
        )
        for k, v in exact.items()
    }
    show(f"{name} {method}: {', '.join(f'{k} {d:.4f}' for k, d in far.items())}")
    assert 0 < max(far.values()) < FAR[method]


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of a condition, in float32."""
    if isinstance(value, torch.Tensor):
        return [value.float()]
    return [t for each in value for t in tensors(each)] if isinstance(value, list | tuple) else []


FAR = {"int8": 0.05, "fp8": 0.25}
"""Of random encoders, whose answers are small beside what is rounded."""


def test_the_cache_keeps_texts_of_quantised_encoders_apart() -> None:
    keys = [
        assemble.keys_of(prepare.prepare(recipe.load(DEMO, [f"memory.quantise_text={m}"])), torch.float32)
        for m in ("none", "int8", "nf4")
    ]
    told = assemble.fill.everything_told(keys[0], [])
    assert len({k.text(next(iter(told.values()))) for k in keys}) == 3
    assert len({k.media(0) for k in keys}) == 1


# -- which layers ------------------------------------------------------------------------------------------------------

# Sana's feed-forwards and half of a U-Net are convolutions, which stay.
LESS = {"sana": 0.49, "sd1": 0.28, "sd2": 0.31}
OUTSIDE = re.compile(
    r"(^|\.)(x_embedder|context_embedder|patch_embed|pos_embed|proj_out|norm_out|time_embed\w*|time_text_embed|"
    r"img_in|txt_in|conv_in|conv_out|time_embedding|add_embedding|caption_projection|final_layer|condition_embedder)\b"
)


@pytest.mark.parametrize("name", [n for n, c in all_cases().items() if hasattr(c, "millions")])
def test_the_bulk_of_every_family_and_not_what_stands_around_it(name: str) -> None:
    """In the published network: at least 80 % of the parameters; no embedder and no last projection."""
    case = all_cases()[name]
    family = families.get(case.family)(families.get(case.family).Options(**case.options), case.task)
    with torch.device("meta"):
        network = case.real()
    found = quantise.layers(network, quantise.of_base(family), "nf4")
    share = sum(network.get_submodule(n).weight.numel() for n in found) / sum(p.numel() for p in network.parameters())
    sys.stdout.write(f"\n{name}: {share:.1%} of the parameters\n")
    assert share >= LESS.get(case.family, 0.8)
    blocks = (
        "|".join(rf"{re.escape(b.path)}\.\d+\." for b in family.blocks) or r".*attentions|.*\.(attention|channelwise)"
    )
    assert all(re.match(blocks, n) for n in found)
    assert not [n for n in found if "." not in n or OUTSIDE.match(n)]


def test_layers_that_keep_their_precision() -> None:
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"a": nn.Linear(16, 4), "b": nn.Linear(20, 4),
                             "wo": nn.Linear(16, 4)})])})  # fmt: skip
    everything = ["blocks.0.a", "blocks.0.b", "blocks.0.wo"]
    assert quantise.layers(network, ".*", "int8_bnb") == everything
    assert quantise.layers(network, ".*", "int8") == ["blocks.0.a", "blocks.0.wo"]
    assert quantise.layers(network, ".*", "nf4") == ["blocks.0.a", "blocks.0.b"]
    assert quantise.layers(network, ".*", "int8_bnb", ["a", "0.b"]) == ["blocks.0.wo"]
    with pytest.raises(UserError, match=r"memory\.quantise_skip: nope matches no layer; layers end in a, b, wo"):
        quantise.layers(network, ".*", "int8", ["nope"])


# -- what the libraries get wrong in silence ---------------------------------------------------------------------------

CRASHES = """
import torch
from torch import nn
from tuner import quantise
network = nn.Sequential(nn.Linear(36, 64), nn.Linear(64, 36)).requires_grad_(False).bfloat16()
place = quantise.Place("int8", torch.bfloat16, torch.device("cpu"))
quantise.put(network, quantise.layers(network, ".*", "int8"), place)
x = torch.randn(40, 36).bfloat16().requires_grad_(True)
network(x).float().sum().backward()
assert x.grad.isfinite().all()
print(type(network[0]).__name__, type(network[1]).__name__)
"""


def test_no_segmentation_fault_of_quanto() -> None:
    """Its kernel for bfloat16 reads beyond rows of 36; in a process of its own, because nothing catches that."""
    done = subprocess.run([sys.executable, "-c", CRASHES], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert done.stdout.split() == ["Linear", "QLinear"]


def layer(method: str, inputs: int = 64, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, nn.Module]:
    """(a linear layer, the same held by a method)."""
    torch.manual_seed(0)
    exact = nn.Linear(inputs, 48).requires_grad_(False)
    network = nn.Sequential(nn.Linear(inputs, 48)).requires_grad_(False)
    network[0].load_state_dict(exact.state_dict())
    work = quantise.Work("it", network, Place(method, dtype, CPU), ".*")
    work.begin()
    work.end()
    return exact, network[0]


NOW = ["int8", "int8_bnb", "fp8_quanto", "fp8", "nf4"]


@pytest.mark.parametrize("method", also_slow(*NOW, "int4"))
def test_evaluation_leaves_gradients_and_answers_as_they_were(method: str) -> None:
    """bitsandbytes packs 4-bit weights anew where the CPU has AVX512, and then gives no gradient. Its int8 rounds what
    goes in too, but on a CPU not while it trains."""
    exact, held = layer(method, 96)
    x = torch.randn(5, 96, requires_grad=True)
    before = held(x)
    held.eval()
    with torch.no_grad():
        far = (held(x) - before).norm() / before.norm()
    assert far < 0.02 if method == "int8_bnb" else far == 0
    held.train()
    after = held(x)
    after.square().mean().backward()
    assert after.equal(before)
    assert x.grad is not None and x.grad.any()
    assert (after - exact(x)).norm() < 0.15 * exact(x).norm()


@pytest.mark.parametrize("method", also_slow(*NOW, "int4"))
def test_autocast_and_the_plain_weight(method: str) -> None:
    """Inputs of another dtype than the scales; and what formats see as the weight is the weight."""
    exact, held = layer(method)
    with torch.autocast("cpu", torch.bfloat16):
        out = held(torch.ones(20, 64, dtype=torch.bfloat16))
    assert out.isfinite().all()
    weight = plain_weight(held)
    assert weight is not None and weight.shape == exact.weight.shape
    assert (weight - exact.weight).norm() < 0.15 * exact.weight.norm()


@pytest.mark.parametrize("method", NOW)
def test_frozen_weights_ask_for_no_gradient_and_can_be_moved(method: str) -> None:
    _, held = layer(method)
    assert not any(p.requires_grad for p in held.parameters())
    offload: Any = __import__("diffusers.hooks", fromlist=["apply_group_offloading"])
    if method != "fp8":
        offload.apply_group_offloading(held, CPU, CPU, offload_type="leaf_level")
    assert held(torch.randn(2, 64)).isfinite().all()


@pytest.mark.parametrize("method", ["int8", "int8_bnb", "nf4"])
def test_plain_weights_go_while_others_are_quantised(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak is the network as loaded and one layer: when the last layer's turn comes, the others are gone."""
    network = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)]).requires_grad_(False)
    weights = [weakref.ref(layer.weight) for layer in network]
    alive: list[int] = []
    make = METHODS[method].make
    assert make

    def counted(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
        alive.append(sum(w() is not None for w in weights))
        return make(layer, dtype)

    monkeypatch.setitem(METHODS, method, replace(METHODS[method], make=counted))
    quantise.Work("it", network, Place(method, torch.float32, CPU), ".*").begin()
    assert alive == [4, 3, 2, 1]
    assert not any(w() is not None for w in weights)


def test_peft_knows_the_layers_of_bitsandbytes(tiny) -> None:
    """It was imported while they were hidden from it; its plain layers would train, but not merge."""
    family = families.get("flux1")()
    source = prepare.Source(str(tiny("flux1")), {})
    for method, kind in (("nf4", "Linear4bit"), ("int8_bnb", "Linear8bitLt")):
        parts = family.load(source, (family.denoiser,), torch.float32)
        with quantise.base(family, parts, Place(method, torch.float32, CPU), (), lambda *_, **__: None):
            adapter: Any = adapters.build(LoraSpec(rank=2), family, parts)
        assert {f"{type(m).__module__}.{type(m).__name__}" for m in adapter.modules.values()} == {
            f"peft.tuners.lora.bnb.{kind}"
        }
    assert libraries.bitsandbytes().nn.Linear4bit


def test_fp8_is_put_on_behind_the_adapter_and_saves_only_with_checkpointing(tiny) -> None:
    """The LoRA stays float32; without checkpointing every weight is kept for the backward pass in full."""
    family = families.get("flux1")()
    source = prepare.Source(str(tiny("flux1")), {})
    parts = family.load(source, (family.denoiser,), torch.float32)
    with quantise.base(family, parts, Place("fp8", torch.float32, CPU), (), lambda *_, **__: None):
        adapter: Any = adapters.build(LoraSpec(rank=2), family, parts)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert {m.get_base_layer().weight.dtype for m in adapter.modules.values()} == {torch.float8_e4m3fn}
    network: Any = parts.network
    cond = {"embeds": torch.randn(1, 24, 32), "pooled": torch.randn(1, 32)}
    kept: list[int] = []
    for checkpointing in (False, True):
        network.train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        stores: dict[int, int] = {}

        def pack(t: torch.Tensor, stores: dict[int, int] = stores) -> torch.Tensor:
            stores[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            family.predict(network, torch.randn(1, 4, 8, 8), torch.tensor([0.5]), cond)
        kept.append(sum(stores.values()))
    assert kept[0] > 3 * kept[1]
    [warning] = [p for p in prepare.prepare(recipe.load(DEMO, ["memory.quantise=fp8"])).problems if "fp8" in p.text]
    assert warning.level == "warning" and warning.remedy == {"memory.checkpointing": True}


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["memory.quantise=int8", "adapter={kind: full}"], "adapter.kind=full trains the base"),
        (["memory.quantise=fp8", "adapter.dora=true"], "adapter.dora does not work on it (it measures the weights"),
        (["memory.quantise=int8_bnb", "adapter.dora=true"], "adapter.dora does not work on it (peft reads the scales"),
        (["memory.quantise=int8", "memory.compile=true"], "memory.compile does not work with memory.quantise=int8"),
        (["memory.quantise=int8", "memory.quantise_skip=[nope]"], "memory.quantise_skip: nope matches no layer"),
        (["memory.quantise_skip=[to_q]"], "memory.quantise_skip does nothing without memory.quantise"),
        (["memory.quantise=int8_torchao"], "torchao is not installed; `pip install torchao`; take int8"),
        (["memory.quantise_text=fp8_torchao"], "torchao is not installed"),
        (["memory.quantise=int4"], "there is no C++ compiler here"),
    ],
)
def test_refused_with_the_way_out(settings: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = quantise.find_spec
    monkeypatch.setattr(quantise, "find_spec", lambda name: None if name.startswith("torchao") else hidden(name))
    monkeypatch.setattr(quantise.shutil, "which", lambda _: None)
    monkeypatch.setattr(quantise.Path, "glob", lambda *_: iter(()))
    quantise.unfit.cache_clear()
    found = prepare._settings(ready_with(settings))
    assert any(p.level == "error" and sentence in p.text for p in found)
    quantise.unfit.cache_clear()


def ready_with(settings: list[str]) -> prepare.Prepared:
    """The demo's recipe, prepared as it is, with these settings put in afterwards."""
    ready = prepare.prepare(recipe.load(DEMO))
    changed = recipe.load(DEMO, settings)
    ready.recipe = prepare.resolve(changed, ready.family, ready.source, ready.geometry, ready.device)
    return ready


def test_what_a_library_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without float8, or without kernels, is found by trying; a fault of ours is not taken for it."""

    def refuse(*_: Any) -> None:
        raise RuntimeError("no kernel for this device\nlong explanation")

    monkeypatch.setattr(quantise, "_try", refuse)
    quantise.unfit.cache_clear()
    where = device.pick()
    assert quantise.unfit("nf4", where) == "bitsandbytes says on cpu: no kernel for this device"
    quantise.unfit.cache_clear()


def test_auto_says_why_and_stays_what_it_chose() -> None:
    ready = prepare.prepare(recipe.load(DEMO, ["memory.quantise=auto", "memory.quantise_text=auto"]))
    assert (ready.recipe.memory.quantise, ready.recipe.memory.quantise_text) == ("int8", "int8")
    notes = [p.text for p in ready.problems if "is auto" in p.text]
    assert len(notes) == 2 and "which takes int8: on cpu it works on every device" in notes[0]


@pytest.mark.parametrize(("free", "method"), [(100, "int8"), (30, "nf4")])
def test_auto_on_a_device_takes_what_fits(free: int, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "unfit", lambda *_: "")
    monkeypatch.setattr(quantise, "free_memory", lambda _: free * 10**9)
    chosen, why = quantise.choose(device.Device("cuda", "a card", ""), lambda: 20 * 10**9)
    assert chosen == method and f"20.0 GB of the {free}.0 GB that are free on a card" in why


def test_every_method_is_in_the_recipe_and_told() -> None:
    names = set(recipe.Quantisation.__args__)
    assert names == {"none", "auto", *METHODS}
    assert all(m.name and m.what and m.why for m in METHODS.values())


def test_samples_beside_each_other_on_a_quantised_base(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tuner sample` draws with the base as the run held it: the run's own last sample again."""
    monkeypatch.setenv("TUNER_HOME", str(run("none").parent / "home"))
    for method in ("int8", "nf4", "fp8"):
        request = {
            "family": "flux1", "source": str(ROOT / "recipes" / "demo" / "base"), "options": {"max_tokens": 16},
            "prompts": ["dolphin, fluent style"], "steps": 4, "size": [64, 64], "guidance": 1.5, "quantise": method,
            "contenders": [{"label": "it", "adapter": str(run(method))}],
        }  # fmt: skip
        (tmp_path / "request.yaml").write_text(json.dumps(request))
        assert main(["sample", str(tmp_path / "request.yaml"), "--out", str(tmp_path / method)]) == 0
        ours = np.asarray(Image.open(tmp_path / method / "00-00-0.png")).astype(int)
        wanted = np.asarray(Image.open(run(method) / "samples" / f"step-{STEPS:06d}-00.png")).astype(int)
        assert np.abs(ours - wanted).max() <= 1
        assert events(tmp_path / method, "quantised")[0]["method"] == method
