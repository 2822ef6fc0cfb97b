"""What sana, lumina2, z_image, hidream, cosmos2 and omnigen have beside the common proofs: samples from cached text,
limits, shifts, options, and what they refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.cosmos import pipeline_cosmos2_text2image
from torch import Tensor

from tests import tiny
from tests.families.case import LONG, SHORT, Case, Recorder, Rig, Shape, generator
from tests.families.cases import all_cases
from tests.families.cases.omnigen import Edit, averaged
from tuner import adapters, extensions, families, sample
from tuner.blocks import on_input
from tuner.errors import UserError
from tuner.extension import Context, Stack
from tuner.families import cosmos2, hidream, omnigen
from tuner.family import Request
from tuner.recipe import FullSpec, LoraSpec, Recipe, TrainSpec
from tuner.source import Source
from tuner.types import Batch, Cond, Prompt

CASES = all_cases()
GUIDED: dict[str, tuple[float, dict[str, Any]]] = {
    "sana": (3.0, {}),
    "sana-1.0": (1.0, {}),
    "lumina2": (3.0, {}),
    "lumina2-told": (1.0, {}),
    "z_image": (2.0, {}),
    "hidream": (3.0, {}),
    "cosmos2": (3.0, {"negative_prompt": ""}),
    "omnigen": (2.0, {}),
    "omnigen-edit": (2.0, {"img_guidance_scale": 1.6}),
}
"""Case → strength, and what the official pipeline must be told for it (its own defaults otherwise)."""

Checkpoint = Callable[[Case], Path]


def changed(folder: Path, to: Path, part: str, **settings: Any) -> Path:
    """A copy of a checkpoint with other settings in one of its JSON files."""
    shutil.copytree(folder, to)
    name = {"model_index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}.get(part)
    path = to / (name or f"{part}/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return to


def encoded(rig: Rig, *captions: str) -> list[Cond]:
    with torch.no_grad():
        return rig.family.encode_text(rig.parts, [Prompt(c) for c in captions])


def refusal(name: str, folder: Path, **options: Any) -> str:
    cls = families.get(name)
    with pytest.raises(UserError) as caught:
        cls(cls.Options(**options)).accept(Source(str(folder), {}))
    return str(caught.value)


@pytest.mark.parametrize("name", GUIDED)
def test_samples_from_cached_text_are_the_pipelines(name: str, checkpoint: Checkpoint) -> None:
    """A guided sample from cached embeddings is, pixel by pixel, the official pipeline's from plain text."""
    rig = Rig(CASES[name], checkpoint(CASES[name]))
    strength, told = GUIDED[name]
    shape, more = Shape(96, 64), {"num_inference_steps": 3, "output_type": "pil", "guidance_scale": strength}
    run = type(rig.case).run if name != "cosmos2" else Case.run
    if name == "sana":  # without a size from its list, as we draw
        more["use_resolution_binning"] = False
    rig.family.accept(rig.source)
    wanted = rig.family.wants_negative(rig.source, strength)
    cond, empty = encoded(rig, SHORT, "")
    official = run(rig.case, rig.official, [SHORT], shape, **more, **told, generator=generator(5)).images[0]
    pictures = tuple(rig.case.pictures(1)[0]) if isinstance(rig.case, Edit) else ()
    request = Request(cond, empty if wanted else None, 96, 64, 3, strength, 5, references=pictures)
    with averaged(rig.family) if pictures else nullcontext():
        drawn = sample.draw(rig.family, rig.parts, request)
    assert drawn.image.size == (96, 64)
    assert np.asarray(official).std() > 5, "a flat picture proves nothing"
    assert np.abs(np.asarray(drawn.image).astype(int) - np.asarray(official).astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["sana", "sana-1.0", "lumina2", "lumina2-told", "cosmos2", "hidream"])
def test_what_is_counted_beyond_the_limit_is_what_is_cut(name: str, checkpoint: Checkpoint) -> None:
    """The last letter of a caption of just the limit is read, that of one token more is not."""
    rig = Rig(CASES[name], checkpoint(CASES[name]))
    tokenizers = {k: v for k, v in rig.parts.components.items() if k.startswith("tokenizer")}
    counted, tokens, limit = max(rig.family.token_counts(tokenizers, "x"), key=lambda c: c[1] - c[2])
    spare = limit - tokens
    for more, read in ((spare, True), (spare + 1, False)):
        text = "x" * more
        counts = {n: (c, most) for n, c, most in rig.family.token_counts(tokenizers, text + "x")}
        assert (counts[counted][0] <= counts[counted][1]) == read
        one, other = encoded(rig, text + "x", text + "z")
        keys = {"tokenizer_3": ["t5"], "tokenizer_4": ["llama"]}.get(counted, ["embeds"])
        assert any(not torch.equal(one[k], other[k]) for k in keys) == read


def test_z_image_counts_its_template(checkpoint: Checkpoint) -> None:
    rig = Rig(CASES["z_image"], checkpoint(CASES["z_image"]))
    for caption in (SHORT, LONG):
        ((_, tokens, limit),) = rig.family.token_counts({"tokenizer": rig.parts["tokenizer"]}, caption)
        assert tokens <= limit
        assert encoded(rig, caption)[0]["embeds"].shape[0] == tokens


DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["sana", "lumina2", "z_image", "hidream", "omnigen"])
def test_shift_is_the_pipelines(name: str, dynamic: bool, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The noise levels of the official pipeline are the unshifted ones moved by our shift."""
    folder = checkpoint(CASES[name])
    if dynamic:
        if name in ("sana", "hidream", "omnigen"):
            pytest.skip("its solver or pipeline knows no dynamic shift")
        folder = changed(folder, tmp_path / "dynamic", "scheduler", **DYNAMIC)
    rig, steps = Rig(CASES[name], folder), 5
    shape = CASES[name].shapes[1]
    CASES[name].run(rig.official, [SHORT], shape, num_inference_steps=steps, generator=generator(1))
    sigmas = rig.official.scheduler.sigmas[:steps].double()
    config = rig.source.config("scheduler")
    if name == "omnigen":
        sigmas, plain = 1 - sigmas, torch.linspace(1, 0, steps + 1)[:-1]
    elif name == "hidream":
        plain = torch.linspace(1, 1 / 1000, steps + 1, dtype=torch.double)[:-1]
    elif name == "sana":
        plain = (1 - torch.linspace(1, 1 / 1000, steps + 1, dtype=torch.double)).flip(0)[:-1]
    else:
        plain = torch.linspace(1, 1 / steps, steps, dtype=torch.double)
    by = rig.family.shift(rig.latent(shape, 1), {}, config)
    assert (by != 1.0) == (name != "omnigen")
    torch.testing.assert_close(by * plain / (1 + (by - 1) * plain), sigmas, atol=2e-6, rtol=0, check_dtype=False)


def test_no_words_are_told_without_instruction(checkpoint: Checkpoint) -> None:
    """The empty caption is the pipelines' "no prompt": told nothing else either."""
    for name, where in (("sana", "mask"), ("lumina2", "mask")):
        rig = Rig(CASES[name], checkpoint(CASES[name]))
        full, empty = encoded(rig, SHORT, "")
        assert int(empty[where].sum()) == 1 < int(full[where].sum())


def test_options_change_encodings_and_their_key(checkpoint: Checkpoint) -> None:
    rig = Rig(CASES["sana"], checkpoint(CASES["sana"]))
    told = encoded(rig, SHORT)[0]["embeds"]
    plain = families.get("sana")(families.get("sana").Options(instruction=False, max_tokens=96))
    with torch.no_grad():
        bare = plain.encode_text(rig.parts, [Prompt(SHORT)])[0]["embeds"]
    assert told.shape == bare.shape
    assert not torch.allclose(told, bare)
    assert plain.encode_settings() != rig.family.encode_settings()


@pytest.mark.parametrize("name", GUIDED)
def test_checkpointing_changes_nothing(name: str, checkpoint: Checkpoint) -> None:
    """Same answer, same gradients of an adapter, for captions of different length in one batch."""
    rig = Rig(CASES[name], checkpoint(CASES[name]))
    spec = LoraSpec(rank=2, targets=list(rig.family.targets)[-1])
    adapter, network = adapters.build(spec, rig.family, rig.parts), rig.parts.network.train()
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(torch.randn(p.shape, generator=generator(1)) * 0.02)
    shape = CASES[name].shapes[1]
    x, t, cond = rig.latent(shape, 2), torch.tensor([0.3, 0.6]), rig.cond([SHORT, LONG], shape)
    seen = []
    for checkpointing in (False, True):
        if checkpointing:
            network.enable_gradient_checkpointing()
        network.zero_grad()
        out = rig.family.predict(network, x, t, cond)
        out.square().mean().backward()
        seen.append([out.detach(), *(p.grad.clone() for p in adapter.parameters() if p.grad is not None)])
    assert len(seen[0]) > 1
    torch.testing.assert_close(seen[1], seen[0], atol=1e-5, rtol=1e-4)


def test_an_autoencoder_of_another_rate_draws_the_size_asked_for(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Lumina's pipeline takes 8 pixels a cell for granted; here it is 4."""
    case = CASES["lumina2"]
    folder = shutil.copytree(checkpoint(case), tmp_path / "finer")
    shutil.rmtree(folder / "vae")
    tiny.vae(folder / "vae", 4, 3, shift_factor=0.1159, scaling_factor=0.3611)
    cls = families.get("lumina2")
    family, source = cls(), Source(str(folder), {})
    assert (family.geometry(source).rate, family.geometry(source).multiple) == (4, 8)
    parts = family.load(source, ("tokenizer", "text_encoder", "transformer", "vae", "scheduler"), torch.float32)
    with torch.no_grad():
        (cond,) = family.encode_text(parts, [Prompt(SHORT)])
    assert sample.draw(family, parts, Request(cond, None, 96, 64, 2, 1.0, 0)).image.size == (96, 64)


def test_hidream_tables_hold_the_text_behind_the_picture(checkpoint: Checkpoint) -> None:
    """As described for routing: all text stands at place 0, which the rotation leaves alone; places of the picture do
    not, but the first."""
    rig = Rig(CASES["hidream"], checkpoint(CASES["hidream"]))
    run = rig.family.blocks[0]
    assert {a.text for b in rig.family.blocks for a in b.aligned} == {"after"}
    calls: list[tuple[int, Tensor]] = []

    def see(call: Any) -> None:
        calls.append((call.tokens.shape[1], call.bound.arguments["image_rotary_emb"]))

    hook = on_input(rig.parts.network.get_submodule(run.path)[0], run, see)
    with torch.no_grad():
        shape = Shape(64, 64)
        rig.family.predict(rig.parts.network, rig.latent(shape, 1), torch.tensor([0.5]), rig.cond([SHORT], shape))
    hook.remove()
    ((count, table),) = calls
    rest = torch.eye(2).expand_as(table)
    moved = (table - rest).abs().flatten(2).amax(-1)[0] > 0
    assert count == 64
    assert moved.tolist() == [False] + [True] * (count - 1) + [False] * (table.shape[1] - count)


def test_tread_knows_what_it_may_leave_out(checkpoint: Checkpoint) -> None:
    """It routes the two streams of HiDream and Cosmos, and says why it does not where tokens may not be missing."""
    cls = extensions.get("tread")
    recipe = Recipe.model_validate({"family": "any", "source": "any", "data": [{"path": "any"}]})
    reasons = {
        n: cls(cls.Settings()).refuses(families.get(n)(), recipe) for n in ("sana", "lumina2", "z_image", "omnigen")
    }
    assert "convolve" in reasons.pop("sana")
    assert all("cannot tell text from picture" in (r or "") for r in reasons.values())
    for name, last in (("hidream", 1), ("cosmos2", 1)):
        rig = Rig(CASES[name], checkpoint(CASES[name]))
        adapter = adapters.build(FullSpec(), rig.family, rig.parts)
        tread = cls(cls.Settings(drop=0.5, first=0, last=last))
        assert tread.refuses(rig.family, recipe) is None
        context = Context(rig.family, rig.parts.network, adapter, 1)
        if name == "hidream":
            with pytest.raises(UserError, match="set last to 1 or less"):
                cls(cls.Settings(first=0, last=2)).attach(context)
        trainer = rig.trainer(adapter, TrainSpec(steps=1, precision="fp32", optimizer="adamw"))
        trainer.stack = Stack([tread])
        trainer.stack.attach(context)
        shape, seen = Shape(64, 64), []
        blocks = rig.parts.network.get_submodule(rig.family.blocks[0].path)
        hook = on_input(blocks[1], rig.family.blocks[0], lambda call: seen.append(call.tokens.shape[1]))  # noqa: B023
        rig.parts.network.train()
        trainer.step([Batch(rig.latent(shape, 2), rig.cond([SHORT, LONG], shape), ("a", "b"), (0, 1), 2)])
        hook.remove()
        assert seen == [CASES[name].tokens(rig, shape) // 2]


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_distilled_models_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    sana, hidream, z_image = (checkpoint(CASES[n]) for n in ("sana", "hidream", "z_image"))
    sprint = changed(sana, tmp_path / "sprint", "model_index", _class_name="SanaSprintPipeline")
    assert "Sana Sprint" in refusal("sana", sprint)
    guided = changed(sana, tmp_path / "guided", "transformer", guidance_embeds=True)
    assert "source: 1.5-1.6b" in refusal("sana", guided)
    fast = changed(hidream, tmp_path / "fast", "scheduler", _class_name="FlowMatchLCMScheduler")
    assert "train HiDream-I1 Full" in refusal("hidream", fast)
    frozen = changed(hidream, tmp_path / "frozen", "transformer", force_inference_output=True)
    assert "experts get no gradient" in refusal("hidream", frozen)
    short = changed(hidream, tmp_path / "short", "text_encoder", max_position_embeddings=77)
    assert "lower it to 77" in refusal("hidream", short)
    omni = changed(z_image, tmp_path / "omni", "transformer", siglip_feat_dim=1152)
    assert "Z-Image Omni" in refusal("z_image", omni)
    assert "is a ZImagePipeline model" in refusal("sana", z_image)


def test_omnigen_wants_tokens_of_16_pixels(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shallow = changed(checkpoint(CASES["omnigen"]), tmp_path / "shallow", "vae", block_out_channels=[8, 16, 16])
    assert "8x8 pixels" in refusal("omnigen", shallow)


# -- cosmos2: the guardrail --------------------------------------------------------------------------------------------


def test_cosmos2_says_that_its_guardrail_is_missing(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where samples are drawn, and checked; a sample that is drawn all the same is refused."""
    folder, cls = str(checkpoint(CASES["cosmos2"])), families.get("cosmos2")
    common: dict[str, Any] = {"family": "cosmos2", "source": folder, "data": [{"path": "own"}]}
    drawn = Recipe(**common, validate={"prompts": [SHORT]})
    plain = (Recipe(**common), Recipe(**common, validate={"prompts": []}))
    monkeypatch.setattr(cosmos2, "is_cosmos_guardrail_available", lambda: False)
    cosmos2.guardrail.cache_clear()
    checked, unchecked = cls(), cls(cls.Options(unchecked=True))
    checked.accept(Source(folder, {}))
    assert "pip install cosmos_guardrail" in (checked.refuses(drawn) or "")
    assert [checked.refuses(r) for r in plain] == [None, None]
    assert unchecked.refuses(drawn) is None
    rig = Rig(CASES["cosmos2"], Path(folder))
    (cond,) = encoded(rig, SHORT)
    with pytest.raises(UserError, match="pip install cosmos_guardrail"):
        sample.draw(checked, rig.parts, Request(cond, None, 64, 64, 2, 1.0, 0))
    monkeypatch.setattr(cosmos2, "is_cosmos_guardrail_available", lambda: True)
    assert checked.refuses(drawn) is None


def test_cosmos2_samples_pass_the_guardrail(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed and not turned off, it sees every picture; turned off, it is not even made."""
    made: list[Any] = []

    class Blackens(cosmos2.Unchecked):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
            return np.zeros_like(frames)

    monkeypatch.setattr(cosmos2, "is_cosmos_guardrail_available", lambda: True)
    monkeypatch.setattr(pipeline_cosmos2_text2image, "CosmosSafetyChecker", Blackens)
    cosmos2.guardrail.cache_clear()
    rig = Rig(CASES["cosmos2"], checkpoint(CASES["cosmos2"]))
    (cond,) = encoded(rig, SHORT)
    request = Request(cond, None, 64, 64, 2, 1.0, 0)
    assert np.asarray(sample.draw(rig.family, rig.parts, request).image).any()
    assert not made
    checked = families.get("cosmos2")(families.get("cosmos2").Options(max_tokens=64))
    checked.accept(rig.source)
    for _ in range(2):
        assert not np.asarray(sample.draw(checked, rig.parts, request).image).any()
    assert len(made) == 1
    cosmos2.guardrail.cache_clear()


# -- hidream: Llama from elsewhere, balance of the experts -------------------------------------------------------------


def test_hidream_reads_llama_from_elsewhere(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cls = checkpoint(CASES["hidream"]), families.get("hidream")
    without = changed(
        folder, tmp_path / "without", "model_index", text_encoder_4=[None, None], tokenizer_4=[None, None]
    )
    llama = tmp_path / "llama"
    shutil.move(without / "text_encoder_4", llama)
    shutil.copytree(without / "tokenizer_4", llama, dirs_exist_ok=True)
    shutil.rmtree(without / "tokenizer_4")
    parts: list[Tensor] = []
    for source, options in ((folder, {}), (without, {"llama": str(llama)})):
        family = cls(cls.Options(max_tokens=96, **options))
        loaded = family.load(Source(str(source), {}), family.text_parts, torch.float32)
        with torch.no_grad():
            parts.append(family.encode_text(loaded, [Prompt(SHORT)])[0]["llama"])
    torch.testing.assert_close(*parts)
    monkeypatch.setattr(hidream, "LLAMA", str(tmp_path / "what the Hub would have"))
    with pytest.raises(UserError, match=r"from .*what the Hub would have .*set options\.llama"):
        cls().load(Source(str(without), {}), cls.text_parts, torch.float32)
    with pytest.raises(UserError, match="Llama text encoder could not be loaded"):
        cls(cls.Options(llama=str(tmp_path))).load(Source(str(without), {}), cls.text_parts, torch.float32)
    keys = [cls(cls.Options(llama=str(llama))).encode_settings()]
    moved = shutil.copytree(llama, tmp_path / "elsewhere" / "another")
    keys.append(cls(cls.Options(llama=str(moved))).encode_settings())
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    keys.append(cls(cls.Options(llama=str(moved))).encode_settings())
    assert keys[0] == keys[1] != keys[2]


def shares(network: Any, tokens: list[Tensor]) -> Tensor:
    """What balance means, from the gates' inputs: E times the sum over experts of share chosen times mean score."""
    gates = [m for m in network.modules() if type(m).__name__ == "MoEGate"]
    terms = []
    for gate, x in zip(gates, tokens, strict=True):
        scores = (x.flatten(0, 1) @ gate.weight.T).softmax(-1)
        chosen = torch.zeros_like(scores).scatter(1, scores.topk(gate.top_k, -1).indices, 1.0)
        terms.append(len(gate.weight) * (chosen.mean(0) / gate.top_k * scores.mean(0)).sum())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_hidream_balances_its_experts(checkpointing: bool, checkpoint: Checkpoint) -> None:
    """The further loss is what it says, reaches the gates, and weighs into the trainer's own step."""
    rig = Rig(CASES["hidream"], checkpoint(CASES["hidream"]))
    cls, network = families.get("hidream"), rig.parts.network
    gates = [m for m in network.modules() if type(m).__name__ == "MoEGate"]
    rig.family = cls(cls.Options(max_tokens=96, balance=0.5))
    cond, x, t = rig.cond([SHORT, LONG], Shape(64, 64)), rig.latent(Shape(64, 64), 2), torch.tensor([0.3, 0.6])
    network.train().requires_grad_(True)
    inputs: list[Tensor] = []
    hooks = [g.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for g in gates]
    rig.family.predict(network, x, t, cond)
    for hook in hooks:
        hook.remove()
    expected = 0.5 * shares(network, inputs)
    (theirs,) = torch.autograd.grad(expected, [gates[0].weight])
    if checkpointing:
        network.enable_gradient_checkpointing()
    rig.family.predict(network, x, t, cond)
    said = rig.family.extra(network)["balance"]
    torch.testing.assert_close(said, expected)
    (ours,) = torch.autograd.grad(said, [gates[0].weight])
    torch.testing.assert_close(ours, theirs)
    assert ours.abs().max() > 0
    assert rig.family.extra(network) == {}
    network.eval()
    rig.family.predict(network, x, t, cond)
    assert rig.family.extra(network) == {}


def test_hidream_trains_with_balance_or_without(checkpoint: Checkpoint) -> None:
    cls, weights = families.get("hidream"), []
    for balance in (0.0, 10.0):
        rig = Rig(CASES["hidream"], checkpoint(CASES["hidream"]))
        rig.family = cls(cls.Options(max_tokens=96, balance=balance))
        spec = TrainSpec(steps=2, lr=1e-3, precision="fp32", optimizer="adamw")
        trainer = rig.trainer(adapters.build(FullSpec(), rig.family, rig.parts), spec)
        cond = rig.cond([SHORT, LONG], Shape(64, 64))
        rig.parts.network.train()
        said = trainer.step([Batch(rig.latent(Shape(64, 64), 2), cond, ("a", "b"), (0, 1), 2)])
        assert ("balance" in said) == (balance > 0)
        gate = next(m for m in rig.parts.network.modules() if type(m).__name__ == "MoEGate")
        weights.append(gate.weight.detach().clone())
    assert not torch.equal(*weights)


def test_hidream_names_pictures_that_are_too_large(checkpoint: Checkpoint) -> None:
    rig = Rig(CASES["hidream"], checkpoint(CASES["hidream"]))
    cond = rig.cond([SHORT, LONG], Shape(64, 64))
    with pytest.raises(UserError, match="at most 256"):
        rig.family.predict(rig.parts.network, torch.zeros(2, 4, 40, 32), torch.tensor([0.1, 0.2]), cond)


# -- omnigen: pictures in the caption, negative prompt -----------------------------------------------------------------


def test_omnigen_captions_name_their_pictures() -> None:
    first, second = "<img><|image_1|></img>", "<img><|image_2|></img>"
    assert omnigen.tagged("make it red", 0) == "make it red"
    assert omnigen.tagged("make it red", 2) == f"{first} {second} make it red"
    own = f"the dog of {second} in {first}, as {second}"
    assert omnigen.tagged(own, 2) == own
    assert omnigen.named(torch.tensor(list(own.encode()), dtype=torch.uint8)) == [1, 0, 1]
    for text, count in ((own, 1), (f"only {first}", 2), (first, 0), ("<|image_1|> bare", 1)):
        with pytest.raises(UserError, match="reference pictures"):
            omnigen.tagged(text, count)


def test_omnigen_negative_prompt_is_without_pictures(checkpoint: Checkpoint) -> None:
    """A run encodes it beside the references of its samples; what the pipeline gets is the words, or its own."""
    rig = Rig(CASES["omnigen-edit"], checkpoint(CASES["omnigen-edit"]))
    with torch.no_grad():
        media = rig.case.media(rig, Shape(), 1)
        empty, own = (
            rig.family.encode_text(rig.parts, rig.case.prompts(rig, [c], media, Shape()))[0]
            for c in ("", "a blurry dog")
        )
    for negative, words in ((empty, ""), (own, "a blurry dog")):
        pipe = rig.family.pipe(rig.parts)
        rig.family.prepare(pipe, Request(own, negative, 64, 64, 1, 2.0, 0))
        assert pipe.multimodal_processor.negative == words


def test_omnigen_negative_prompt_reaches_the_network(checkpoint: Checkpoint) -> None:
    """A user's own takes the place of the pipeline's; an empty one leaves it."""
    rig = Rig(CASES["omnigen"], checkpoint(CASES["omnigen"]))
    cond, empty, own = encoded(rig, SHORT, "", "a blurry dog")
    told = []
    for negative in (empty, own):
        with Recorder(rig.parts.network) as recorded:
            sample.draw(rig.family, rig.parts, Request(cond, negative, 64, 64, 1, 2.0, 0))
        told.append(rig.parts["tokenizer"].decode(recorded.calls[0]["input_ids"][1]))
    assert "low quality, jpeg artifacts" in told[0]
    assert "a blurry dog" in told[1]
    assert "jpeg" not in told[1]
