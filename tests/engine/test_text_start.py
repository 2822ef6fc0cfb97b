"""Runs that go on from adapters with text encoders: they begin with exactly what the file does, and lose nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engine.test_runs import losses
from tests.engine.test_text_training import FILE, built, ran, recipe, trained  # noqa: F401  (a fixture)
from tests.families.case import SHORT, Rig, generator
from tests.families.cases import all_cases
from tests.families.conftest import checkpoint, elsewhere  # noqa: F401  (fixtures)
from tuner import adapters, assemble, families, prepare, run
from tuner.adapters import _lycoris_start, start
from tuner.checkpoint import WEIGHTS
from tuner.errors import UserError
from tuner.formats.file import METADATA
from tuner.formats.layers import Layer
from tuner.recipe import LoraSpec, LoraTextSpec, LycorisSpec, LycorisTextSpec, parse
from tuner.types import Parts

FAMILIES = ["sd1", "sd2", "sdxl", "sd3", "flux1"]
Spec = LoraSpec | LycorisSpec
SPECS: dict[str, Spec] = {
    "lora": LoraSpec(
        rank=2, ranks={"to_q": 3}, alphas={"to_k": 5.0}, alpha=4.0,
        text=LoraTextSpec(rank=3, alpha=7.0, ranks={"fc1": 2}, alphas={r"text_encoder\..*q_proj": 1.5}),
    ),
    "dora": LoraSpec(rank=2, alpha=3.0, dora=True, text=LoraTextSpec()),
    "bias": LoraSpec(rank=2, text=LoraTextSpec(form="bias")),
    "lokr": LycorisSpec(algorithm="lokr", rank=2, alpha=4.0, text=LycorisTextSpec(rank=3, alpha=2.0)),
    "locon": LycorisSpec(
        algorithm="locon", rank=2, text=LycorisTextSpec(alpha=3.0, algorithms={"*.fc1": {"algorithm": "loha"}})
    ),
    "oft": LycorisSpec(algorithm="diag_oft", rank=4, constraint=1e-3, text=LycorisTextSpec()),
    "glora": LycorisSpec(algorithm="glora", rank=2, text=LycorisTextSpec()),
    "full": LycorisSpec(algorithm="full", text=LycorisTextSpec()),
}  # fmt: skip


def encoders(rig: Rig) -> Parts:
    """The text encoders and their tokenizers."""
    return rig.family.load(rig.source, rig.family.retelling_parts(rig.source), torch.float32)


def made(rig: Rig, spec: Spec) -> Any:
    """An adapter on denoiser and text encoders as a run begins with it."""
    assert spec.text is not None
    if spec.start is None:
        if isinstance(spec, LycorisSpec):
            spec = spec.filled()
        spec = prepare._with_text(spec, rig.family, 1e-3)
    torch.manual_seed(3)
    inner = adapters.build(spec, rig.family, rig.parts)
    adapters.begin(inner, spec, rig.family, rig.source)
    both = adapters.with_text(inner, spec, rig.family, encoders(rig), stop=9)
    adapters.begin(both, spec, rig.family, rig.source)
    return both


def moved(adapter: Any) -> Any:
    """The same with other values in every tensor."""
    torch.manual_seed(5)
    adapter.load_state_dict({k: v + 0.1 * torch.randn_like(v) for k, v in adapter.state_dict().items()})
    return adapter


def understood(path: Path, rig: Rig, kind: type[Spec]) -> Spec:
    """The settings that a run takes from a file, unchanged when it reads them again."""
    fill = _lycoris_start.understood if kind is LycorisSpec else start.understood
    spec = fill(kind(start=str(path)), rig.family, rig.source)
    assert spec.text is not None and spec.text.frozen
    assert fill(kind.model_validate(spec.model_dump()), rig.family, rig.source) == spec
    return spec


def deltas(adapter: Any) -> dict[tuple[str, str], Tensor]:
    """What an adapter adds to each weight and bias."""
    found = {}
    for layer in adapter.layers():
        network = adapter.encoders.get(layer.part, getattr(adapter.inner, "denoiser", None))
        base: Any = network.get_submodule(own_name(network, layer))
        base = getattr(base, "base_layer", base)
        found[layer.part, layer.module] = layer.delta(base.weight.detach())
        if (bias := layer.bias()) is not None:
            found[layer.part, f"{layer.module}.bias"] = bias
    return found


def own_name(network: Any, layer: Layer) -> str:
    names = {n for n, _ in network.named_modules()}
    return layer.module if layer.module in names else layer.module.removeprefix("text_model.")


def same(ours: dict[Any, Tensor], theirs: dict[Any, Tensor], far: float = 1e-6) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=far, rtol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def written(rig: Rig, adapter: Any, folder: Path) -> dict[str, Path]:
    """Its file in every dialect that the reader knows."""
    files = {w.format: w.path for w in rig.exported(adapter, folder)}
    save_file(adapter.state_dict(), folder / WEIGHTS, adapter.metadata())
    files["checkpoint"] = folder / WEIGHTS
    if "diffusers" in files:
        from safetensors import safe_open

        with safe_open(files["diffusers"], "pt") as file:
            stated = {METADATA: file.metadata()[METADATA]}
        for name, change in (
            ("peft", lambda k: f"base_model.model.{k}"),
            (
                "old",
                lambda k: k.replace("lora_A.weight", "lora.down.weight").replace("lora_B.weight", "lora.up.weight"),
            ),
        ):
            if not any("magnitude" in k or ".bias" in k for k in load_file(files["diffusers"])):
                files[name] = folder / f"{name}.safetensors"
                save_file({change(k): v for k, v in load_file(files["diffusers"]).items()}, files[name], stated)
    return files


QUICK = {("sd1", "lora"), ("flux1", "dora")}


@pytest.mark.parametrize(
    ("family", "kind"),
    [pytest.param(f, k, marks=[] if (f, k) in QUICK else pytest.mark.families) for f in FAMILIES for k in SPECS],
)
def test_every_dialect_begins_as_it_was_written(
    family: str,
    kind: str,
    checkpoint: Callable[..., Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Settings, values and changes of the weights are the file's; written again, it is the same file."""
    folder = checkpoint(all_cases()[family])
    rig = Rig(all_cases()[family], folder)
    adapter = moved(made(rig, SPECS[kind]))
    wanted, files = deltas(adapter), written(rig, adapter, tmp_path)
    for form, path in files.items():
        other = Rig(all_cases()[family], folder)
        lora = isinstance(SPECS[kind], LoraSpec)
        try:
            again = made(other, understood(path, other, LoraSpec if lora else LycorisSpec))
        except UserError as error:
            assert (kind, form) in REFUSED, f"{form}: {error}"
            assert REFUSED[kind, form] in str(error)
            continue
        assert (kind, form) not in REFUSED
        begun = deltas(again)
        more = begun.keys() - wanted.keys()  # a file that joins layers has a part for each of them
        assert not any(begun[k].abs().max() > 1e-6 for k in more)
        same({k: v for k, v in begun.items() if k not in more}, wanted)
        assert not again.text.parameters() and again.inner.parameters()
        if form in ("checkpoint", "diffusers", "lycoris"):
            rewritten = written(other, again, tmp_path / f"again-{form}")
            for name in files.keys() & {"diffusers", "kohya", "lycoris"}:
                before, after = load_file(files[name]), load_file(rewritten[name])
                assert before.keys() == after.keys()
                # the alpha of a LoKr of two whole factors means nothing
                same(*({k: v for k, v in x.items() if kind != "lokr" or v.ndim} for x in (after, before)))


REFUSED: dict[tuple[str, str], str] = {}
"""(kind, format) that cannot be gone on from, and what is said."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        pytest.param(f, k, marks=[] if (f, k) in (("sdxl", "lora"), ("sd1", "dora")) else pytest.mark.families)
        for f in FAMILIES
        for k in ("lora", "dora")
    ],
)
def test_it_draws_what_diffusers_draws_with_the_file(
    family: str,
    kind: str,
    checkpoint: Callable[..., Path],  # noqa: F811
    elsewhere: Callable[..., Tensor],  # noqa: F811
    tmp_path: Path,
) -> None:
    """In a process that knows nothing of us: base, denoiser and encoders with the file, before any step."""
    case = all_cases()[family]
    folder = checkpoint(case)
    rig = Rig(case, folder)
    path = rig.exported(moved(made(rig, SPECS[kind])), tmp_path)[0].path
    other = Rig(case, folder)
    adapter = made(other, understood(path, other, LoraSpec))
    shape = case.shapes[0]

    def here() -> Tensor:
        drawn = case.run(other.official, [SHORT], shape, num_inference_steps=2, generator=generator(11))
        return case.output(drawn)

    base = here()
    setattr(other.official, other.family.denoiser, other.parts.network)
    half = here()
    for name, encoder in adapter.encoders.items():
        setattr(other.official, name, encoder.eval())
    whole = here()
    there = elsewhere(family, folder, path, other.family.lora_arguments)
    changed = (whole - half).abs().max().item()
    assert changed > 1e-4 and (half - base).abs().max() > 1e-4
    assert (there - whole).abs().max().item() < max(1e-5, 1e-2 * changed)


# -- whole runs --------------------------------------------------------------------------------------------------------


def going_on(asked: Callable[..., Any], path: Path, text: Any, kind: str = "lora") -> dict[str, Any]:
    raw = asked("sdxl", None, train={"steps": 3})
    raw["adapter"] = {"kind": kind, "start": str(path), **({} if text is None else {"text": text})}
    return raw


def only(folder: Path, form: str) -> dict[str, Tensor]:
    """What a run wrote in a format."""
    return load_file(next((folder / "export" / form).glob("*.safetensors")))


def problems(raw: dict[str, Any]) -> dict[str, str]:
    return {f"{p.level} {p.where}": p.text for p in prepare.prepare(parse(raw)).problems}


@pytest.fixture
def first(recipe: Callable[..., Any], tmp_path: Path) -> Path:  # noqa: F811
    """A finished run on SDXL with both encoders."""
    return ran(tmp_path, recipe("sdxl", {"rank": 2, "alpha": 5.0}, train={"steps": 2}), "first")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["lora", pytest.param("lycoris", marks=pytest.mark.families)])
def test_a_run_from_a_run(
    kind: str,
    recipe: Callable[..., Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Without a step it comes out as it went in; held encoders stay to the last bit, trained ones move; resume is
    exact."""
    raw = recipe("sdxl", {"rank": 2, "alpha": 5.0}, train={"steps": 2})
    raw["adapter"] |= {"kind": kind}
    one = ran(tmp_path, raw, "one")
    raw = going_on(recipe, one, None, kind)
    for file in assemble.write(
        built(raw).trainer, prepare.prepare(parse(raw)), tmp_path / "again", {}, lambda *_, **__: None
    ):
        assert not file.problems
        before, after = only(one, file.format), load_file(file.path)
        assert before.keys() == after.keys()
        same(*({k: v for k, v in x.items() if kind == "lora" or v.ndim} for x in (after, before)))

    form = "diffusers" if kind == "lora" else "lycoris"
    held = ran(tmp_path, raw, "held")
    began, ended = only(one, form), only(held, form)
    text = [k for k in began if "text_encoder" in k]
    assert text and all(ended[k].equal(began[k]) for k in text)
    assert any(not ended[k].equal(began[k]) for k in began.keys() - set(text))

    both = ran(tmp_path, {**going_on(recipe, one, {"frozen": False}, kind), "save": {"every": 2}}, "both")
    trained_on = only(both, form)
    assert any(not trained_on[k].equal(began[k]) for k in text)
    told, last = losses(both), both / "checkpoints" / "step-000003"
    weights = load_file(last / WEIGHTS)
    shutil.rmtree(last)
    assert run.resume(both) == 0
    assert losses(both) == told
    again = load_file(last / WEIGHTS)
    assert again.keys() == weights.keys() and all(v.equal(weights[k]) for k, v in again.items())


def test_what_file_and_recipe_say_apart_is_told(
    first: Path,
    recipe: Callable[..., Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    said = problems(going_on(recipe, first, None))
    assert "changes text_encoder, text_encoder_2 too" in said["note adapter.text"]
    assert "does not learn; set adapter.text.frozen: false" in said["note adapter.text"]
    with pytest.raises(UserError, match=r"adapter\.text\.parts leaves out text_encoder_2"):
        prepare.prepare(parse(going_on(recipe, first, {"parts": ["text_encoder"]})))
    with pytest.raises(UserError, match=r"adapter\.text\.rank and alpha make 8 .* has 2 and 5"):
        prepare.prepare(parse(going_on(recipe, first, {"rank": 8})))
    said = problems(going_on(recipe, first, {"frozen": True, "lr": 1e-3}))
    assert "adapter.text.lr has no meaning with adapter.text.frozen" in said["error adapter"]

    state = load_file(first / FILE)
    one = {k: v for k, v in state.items() if not k.startswith("text_encoder_2.")}
    bare = {k: v for k, v in state.items() if not k.startswith("text_encoder")}
    words = {k: v for k, v in state.items() if k.startswith("text_encoder")}
    for name, part in (("one", one), ("bare", bare), ("words", words)):
        save_file(part, tmp_path / f"{name}.safetensors")
    said = problems(going_on(recipe, tmp_path / "bare.safetensors", {"frozen": True}))
    assert "has none; remove adapter.text" in said["error adapter.text.frozen"]
    assert "note adapter.text" not in problems(going_on(recipe, tmp_path / "bare.safetensors", None))
    both = {"parts": ["text_encoder", "text_encoder_2"]}
    said = problems(going_on(recipe, tmp_path / "one.safetensors", both))
    assert "says nothing of text_encoder_2, whose adapter begins anew" in said["note adapter.text.parts"]
    _, job = trained(going_on(recipe, tmp_path / "one.safetensors", both), 1)
    assert {k.split(".")[0] for k in job.trainer.adapter.state_dict()} == {"unet", *both["parts"]}
    _, job = trained(going_on(recipe, tmp_path / "words.safetensors", None), 1)
    assert {k: v for k, v in job.trainer.adapter.state_dict().items() if k in words}.keys() == words.keys()
    assert not families.get("z_image").trainable_text
