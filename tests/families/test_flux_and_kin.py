"""What the proofs of every family leave out for SD3, FLUX and their kin: options, refusals, shifts, mended defects."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from tests.families.case import LONG, SHORT, Case, Recorder, Rig, Shape
from tests.families.cases import all_cases
from tuner import adapters, extensions, families
from tuner.errors import UserError
from tuner.extension import Context, Stack
from tuner.family import Request
from tuner.recipe import ExtensionSpec, LoraSpec, TrainSpec
from tuner.source import Source
from tuner.types import Batch, Media, Prompt, generator

Make = Callable[..., Rig]
SHAPE = Shape(64, 64)


@pytest.fixture
def make(checkpoint: Callable[[Case], Path]) -> Make:
    """make(case name, **options) → a rig of its own with these options of the family beside the case's."""

    def made(name: str, **options: Any) -> Rig:
        case = copy(all_cases()[name])
        folder = checkpoint(case)
        case.options = {**case.options, **options}
        return Rig(case, folder)

    return made


def predicted(rig: Rig, cond: dict[str, Any]) -> Tensor:
    """What the network answers for a fixed batch of two."""
    with torch.no_grad():
        x, t = rig.latent(SHAPE, 2, 3), torch.tensor([0.3, 0.8])
        return rig.family.predict(rig.parts.network, x, t, cond)


def spoilt(cond: dict[str, Any], mask: Tensor) -> dict[str, Any]:
    """The same captions with noise in place of their masked tokens."""
    noise = torch.randn(cond["embeds"].shape, generator=generator(1))
    return {**cond, "embeds": torch.where(mask[..., None], cond["embeds"], noise)}


# -- FLUX.1: masked T5 -------------------------------------------------------------------------------------------------


def test_t5_mask_leaves_the_padding_out(make: Make) -> None:
    """With the option, padding may be anything, or cut off; without, as in the original model, it is attended."""
    rig = make("flux1", t5_mask=True)
    cond = rig.cond([SHORT, LONG], SHAPE)
    mask = cond["mask"]
    assert mask.sum(1).tolist() == [len(rig.parts["tokenizer_2"](SHORT).input_ids), 32]
    masked = predicted(rig, cond)
    torch.testing.assert_close(predicted(rig, spoilt(cond, mask)), masked, atol=1e-5, rtol=1e-5)
    bare = {k: v for k, v in cond.items() if k != "mask"}
    cut = predicted(rig, {**bare, "embeds": cond["embeds"][:, : int(mask[0].sum())]})
    torch.testing.assert_close(cut[0], masked[0], atol=1e-5, rtol=1e-5)
    plain = predicted(rig, bare)
    assert (plain[0] - masked[0]).abs().max() > 1e-3
    assert (predicted(rig, spoilt(bare, mask)) - plain).abs().max() > 1e-3
    assert "mask" not in make("flux1").cond([SHORT, LONG], SHAPE)


ROUTED = [
    ("flux1", {"t5_mask": True}),
    ("chroma", {}),
    ("sd3-medium-dual", {}),
    ("auraflow", {}),
    ("flux1-kontext", {}),
    ("flux2-edit", {}),
]


@pytest.mark.parametrize(("name", "options"), ROUTED, ids=[n for n, _ in ROUTED])
def test_token_routing_goes_with_masks_references_and_checkpointing(make: Make, name: str, options: dict) -> None:
    """TREAD cuts masks along with the tokens: dropping none changes nothing, dropping half does and trains."""

    def loss(*techniques: ExtensionSpec, checkpointing: bool = False) -> float:
        rig = make(name, **options)
        torch.manual_seed(0)
        adapter = adapters.build(LoraSpec(rank=4), rig.family, rig.parts)
        trainer = rig.trainer(adapter, TrainSpec(steps=1, lr=1e-2, precision="fp32"))
        trainer.stack = Stack([extensions.build(t) for t in techniques])
        trainer.stack.attach(Context(rig.family, rig.parts.network, adapter, 1))
        if checkpointing:
            rig.parts.network.enable_gradient_checkpointing()
        rig.parts.network.train()
        batch = Batch(rig.latent(SHAPE, 2, 8), rig.cond([SHORT, LONG], SHAPE), ("a", "b"), (0, 1), 2)
        return trainer.step([batch])["loss"]

    def tread(drop: float) -> ExtensionSpec:
        return ExtensionSpec(kind="tread", drop=drop, first=0, last=-1)

    plain = loss()
    assert loss(tread(0.0)) == pytest.approx(plain, rel=1e-7)
    routed = loss(tread(0.5))
    assert routed != pytest.approx(plain, rel=1e-6)
    assert loss(tread(0.5), checkpointing=True) == pytest.approx(routed, rel=1e-5)


def test_t5_mask_samples_without_padding(make: Make) -> None:
    """We draw what the official pipeline draws when its attention is given the mask."""
    rig = make("flux1", t5_mask=True)
    with torch.no_grad():
        cond = rig.family.encode_text(rig.parts, [Prompt(SHORT)])[0]
        request = Request(cond, None, 64, 64, 2, 3.5, 1)
        arguments = {**rig.family.sized(request), **rig.family.call(rig.parts, request), "output_type": "pt"}
        ours = rig.family.pipe(rig.parts)(**arguments, generator=generator(1)).images
    tokens = rig.case.tokens(rig, SHAPE)
    seen = torch.cat([cond["mask"], torch.ones(tokens, dtype=torch.bool)])[None, None, None]
    settings = {"num_inference_steps": 2, "guidance_scale": 3.5}
    masked = {"joint_attention_kwargs": {"attention_mask": seen}}
    theirs = rig.case.run(rig.official, [SHORT], SHAPE, **settings, **masked, generator=generator(1)).images
    plain = rig.case.run(rig.official, [SHORT], SHAPE, **settings, generator=generator(1)).images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (plain - theirs).abs().max() > 1e-3


# -- Chroma: its mask --------------------------------------------------------------------------------------------------


def test_chroma_leaves_padding_out_but_for_its_first_token(make: Make) -> None:
    """Masked padding may be anything. With the pinned pipeline's mask of floats it would be attended."""
    rig = make("chroma")
    cond = rig.cond([SHORT, LONG], SHAPE)
    mask = cond["mask"]
    assert mask.dtype is torch.bool
    assert mask.sum(1).tolist() == [len(rig.parts["tokenizer"](SHORT).input_ids) + 1, 32]
    answer = predicted(rig, cond)
    torch.testing.assert_close(predicted(rig, spoilt(cond, mask)), answer, atol=1e-5, rtol=1e-5)
    floats = {**cond, "mask": mask.float()}
    wrong = (predicted(rig, spoilt(floats, mask)) - predicted(rig, floats)).abs().max()
    assert wrong > 1e-3, "the library masks with floats now: take its mask as it is"


@pytest.mark.parametrize("captions", [[LONG, LONG], [SHORT, LONG]])
def test_chroma_keeps_its_mask_under_checkpointing(make: Make, captions: list[str]) -> None:
    """Checkpointing changes neither answer nor gradient, also with two passes before one backward."""

    def answered(checkpointing: bool, ready: bool) -> tuple[Tensor, Tensor]:
        rig = make("chroma")
        network = rig.parts.network.train()
        for _ in range(2 * ready):  # twice does no harm
            rig.family.ready(network)
        if checkpointing:
            network.enable_gradient_checkpointing()
        own, x = network._gradient_checkpointing_func, rig.latent(SHAPE, 2, 3).requires_grad_()
        t = torch.tensor([0.3, 0.8])
        out = rig.family.predict(network, x, t, rig.cond(captions, SHAPE))
        other = rig.family.predict(network, x, t, rig.cond([captions[1], SHORT], SHAPE))
        ((out + 2 * other) * torch.randn(out.shape, generator=generator(2))).sum().backward()
        assert network._gradient_checkpointing_func is own
        return torch.cat([out, other]).detach(), x.grad

    plain = answered(False, True)
    assert torch.isfinite(plain[1]).all()
    torch.testing.assert_close(answered(True, True), plain, atol=1e-6, rtol=1e-5)
    wrong = (answered(True, False)[0] - plain[0]).abs().max()
    assert wrong > 1e-3, "the library keeps the mask now: drop what ready() mends"


# -- SD3 without T5 ----------------------------------------------------------------------------------------------------


def test_sd3_without_t5_encodes_before_the_transformer_is_loaded(make: Make) -> None:
    """The phase that fills the cache loads encoders only; zeros stand in T5's place as in the pipeline."""
    rig = make("sd3-large-no-t5")
    parts = rig.family.load(rig.source, rig.family.text_parts, torch.float32)
    assert "transformer" not in parts.components
    with torch.no_grad():
        ours = rig.family.encode_text(parts, [Prompt(SHORT)])[0]
        embeds, _, pooled, _ = rig.official.encode_prompt(
            SHORT, None, None, do_classifier_free_guidance=False, max_sequence_length=32
        )
    torch.testing.assert_close(ours, {"embeds": embeds[0], "pooled": pooled[0]})
    assert not ours["embeds"][77:].any() and len(ours["embeds"]) == 77 + 32


# -- lengths, shifts, sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flux2", "flux2-klein", "auraflow"])
def test_tokens_are_counted_as_the_encoder_sees_them(make: Make, name: str) -> None:
    """With whatever the template puts around the caption."""
    rig = make(name)
    for caption in (SHORT, LONG):
        with Recorder(rig.official.text_encoder) as seen, torch.no_grad():
            rig.official.encode_prompt(prompt=caption, **rig.case.settings)
        [(part, has, takes)] = rig.family.token_counts({"tokenizer": rig.parts["tokenizer"]}, caption)
        assert (part, has) == ("tokenizer", int(seen.calls[0]["attention_mask"].sum()))
        assert takes == rig.case.options["max_tokens"] >= has
    [(_, has, takes)] = rig.family.token_counts({"tokenizer": rig.parts["tokenizer"]}, "xyzzy " * 100)
    assert has > takes


def test_sd3_counts_the_tokens_of_all_three(make: Make) -> None:
    rig = make("sd3")
    tokenizers = {p: rig.parts[p] for p in rig.family.text_parts if p.startswith("tokenizer")}
    counts = {name: (has <= takes, takes) for name, has, takes in rig.family.token_counts(tokenizers, SHORT)}
    assert counts == {"tokenizer": (True, 77), "tokenizer_2": (True, 77), "tokenizer_3": (True, 32)}
    assert all(has > takes for _, has, takes in rig.family.token_counts(tokenizers, "xyzzy " * 100))


@pytest.mark.parametrize("name", ["flux1", "flux1-schnell", "sd3", "chroma", "auraflow", "flux2"])
@pytest.mark.parametrize("cells", [32, 64])
def test_shift_is_the_schedulers(make: Make, name: str, cells: int) -> None:
    """A noise level of one half lands where the pipeline's scheduler puts it at this size."""
    rig = make(name)
    tokens = cells * cells if name == "flux2" else cells * cells // 4
    dynamic = rig.official.scheduler.config.use_dynamic_shifting
    mu = compute_empirical_mu(tokens, 200) if name == "flux2" else calculate_shift(tokens)
    rig.official.scheduler.set_timesteps(sigmas=[1.0, 0.5], **({"mu": mu} if dynamic else {}))
    shift = rig.family.shift(torch.zeros(1, 4, cells, cells), {}, rig.source.config("scheduler"))
    assert shift / (1 + shift) == pytest.approx(float(rig.official.scheduler.sigmas[1]), rel=1e-5)
    assert (shift > 1) is (name != "flux1-schnell")


@pytest.mark.parametrize(("name", "side"), [("sd3", 48), ("auraflow", 28)])
def test_pictures_larger_than_the_table_of_positions_are_refused(make: Make, name: str, side: int) -> None:
    """The largest that fits is answered; AuraFlow's network would answer larger ones wrongly."""
    rig = make(name)
    cond, t = rig.cond([SHORT], SHAPE), torch.tensor([0.5])
    channels = rig.parts["vae"].config.latent_channels
    with torch.no_grad():
        rig.family.predict(rig.parts.network, torch.randn(1, channels, side, 8), t, cond)
        with pytest.raises(UserError, match=r"media\.resolutions .* 8x\d+ cells"):
            rig.family.predict(rig.parts.network, torch.randn(1, channels, side + 2, 8), t, cond)


# -- references --------------------------------------------------------------------------------------------------------


def test_references_of_one_batch_must_agree(make: Make) -> None:
    """Items without a reference and items with one, or of two sizes, cannot share a sequence."""
    rig = make("flux2-klein-edit")
    pixels = torch.zeros(1, 3, 64, 64)

    def item(*sizes: int) -> dict[str, Tensor]:
        with torch.no_grad():
            media = Media(pixels, references=tuple(torch.zeros(1, 3, 64, s) for s in sizes))
            return rig.family.media_cond(rig.parts, media)[0]

    assert item() == {}
    assert rig.family.collate([item(64, 72), item(64, 72)])["reference_1"].shape == (2, 16, 8, 9)
    for other in (item(), item(64), item(72, 72)):
        with pytest.raises(UserError, match=r"differ in number or size \(.*train\.batch"):
            rig.family.collate([item(64, 72), other])


def test_kontext_reads_one_reference_and_draws_at_the_asked_size(make: Make) -> None:
    rig = make("flux1-kontext")
    two = (torch.zeros(1, 3, 64, 64),) * 2
    with pytest.raises(UserError, match=r"has 2; leave one in data\.reference"):
        rig.family.media_cond(rig.parts, Media(torch.zeros(1, 3, 64, 64), references=two))
    from tests.families.packed import picture

    with torch.no_grad():
        cond = rig.family.encode_text(rig.parts, [Prompt(SHORT)])[0]
        for references, tokens in (((), 96), ((picture(0, 48, 40),), 96 + 30), ((picture(0, 960, 640),), 2 * 96)):
            request = Request(cond, None, 96, 64, 1, 2.5, 0, references=references)
            with Recorder(rig.parts.network) as seen:
                arguments = {**rig.family.sized(request), **rig.family.call(rig.parts, request)}
                image = rig.family.pipe(rig.parts)(**arguments).images[0]
            assert image.size == (96, 64)
            assert seen.calls[0]["hidden_states"].shape[1] == tokens


# -- refusals ----------------------------------------------------------------------------------------------------------


def changed(folder: Path, to: Path, part: str, **values: Any) -> Source:
    """The configurations of a checkpoint, without its weights, one of them changed."""
    for file in folder.rglob("*.json"):
        if file.name in ("model_index.json", "config.json"):
            told = json.loads(file.read_text())
            if str(file.parent.relative_to(folder)) == part:
                told |= values
            (to / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (to / file.relative_to(folder)).write_text(json.dumps(told))
    return Source(str(to), {})


@pytest.mark.parametrize(
    ("name", "task", "change", "said"),
    [
        ("flux1", "generate", (".", {"_class_name": "FluxFillPipeline"}), "fills masked parts .* take one of dev"),
        ("flux1", "generate", (".", {"_class_name": "FluxControlPipeline"}), "along edges or depth"),
        ("flux1", "generate", (".", {"_class_name": "FluxPriorReduxPipeline"}), "turns pictures into prompts"),
        ("flux1", "generate", ("transformer", {"in_channels": 96}), "takes 96 channels, but 2x2 cells .* have 16"),
        ("flux1", "edit", (".", {}), "task is edit, but source .* take source kontext"),
        ("flux1", "generate", (".", {"_class_name": "StableDiffusion3Pipeline"}), "change `family` or `source`"),
        ("flux2-klein", "generate", (".", {"is_distilled": True}), "distilled .* klein-4b or klein-9b"),
        ("flux2-klein", "edit", (".", {"_class_name": "Flux2KleinKVPipeline"}), "distilled"),
        ("flux2-klein", "generate", ("text_encoder", {"num_hidden_layers": 12}), r"options\.text_layers .* 0 to 12"),
        ("flux2", "generate", ("text_encoder", {"text_config": {"num_hidden_layers": 12}}), "has the layers 0 to 12"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    checkpoint: Callable[[Case], Path], tmp_path: Path, name: str, task: str, change: tuple[str, dict], said: str
) -> None:
    case, (part, values) = all_cases()[name], change
    source = changed(checkpoint(case), tmp_path, part, **values)
    with pytest.raises(UserError, match=said):
        families.build(case.family, {}, task).accept(source)


@pytest.mark.parametrize(
    ("name", "hub_id", "said"),
    [
        ("sd3", "stabilityai/stable-diffusion-3.5-large-turbo", "train source 3.5-large"),
        ("chroma", "lodestones/Chroma1-Flash", "train source hd"),
    ],
)
def test_distilled_models_are_refused_by_their_hub_names(
    checkpoint: Callable[[Case], Path], name: str, hub_id: str, said: str
) -> None:
    source = Source(str(checkpoint(all_cases()[name])), {})
    families.build(name, {}).accept(source)
    source.hub_id = hub_id
    with pytest.raises(UserError, match=said):
        families.build(name, {}).accept(source)


def test_kontext_also_draws_from_text_alone(checkpoint: Callable[[Case], Path]) -> None:
    families.build("flux1", {}, "generate").accept(Source(str(checkpoint(all_cases()["flux1-kontext"])), {}))


def test_flux2_text_layers_are_taken(make: Make) -> None:
    """A text encoder of other depth is read where the recipe says."""
    rig = make("flux2-klein", text_layers=(1, 2, 3))
    assert rig.family.encode_settings()["text_layers"] == [1, 2, 3]
    with torch.no_grad():
        ours = rig.family.encode_text(rig.parts, [Prompt(SHORT)])[0]["embeds"]
        usual = make("flux2-klein").family.encode_text(rig.parts, [Prompt(SHORT)])[0]["embeds"]
        theirs, _ = rig.official.encode_prompt(SHORT, text_encoder_out_layers=(1, 2, 3), **rig.case.settings)
    torch.testing.assert_close(ours, theirs[0])
    assert not torch.allclose(ours, usual)
