"""The proofs that a family is supported: its calls and answers are those of the official pipeline, and training works.

Official means: loaded by diffusers' own `DiffusionPipeline.from_pretrained` from the same folder and given plain text.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from tuner import adapters, families, optimizers
from tuner.blocks import on_input, on_output, walk
from tuner.errors import UserError
from tuner.extension import Stack
from tuner.family import Family, Framing, Request
from tuner.loop import Trainer
from tuner.objective import Diffusion
from tuner.recipe import FullSpec, TrainSpec
from tuner.source import Source
from tuner.timesteps import shifted
from tuner.types import Batch, Cond, Media, Noised, Parts, Prompt, expand, generator

OPTIONS: dict[str, dict[str, Any]] = {"flux1": {"max_tokens": 32}}
"""Family options of the tests, and what the official pipeline calls the same."""
OFFICIAL: dict[str, dict[str, Any]] = {"flux1": {"max_sequence_length": 32}}
NO_GUIDANCE: dict[str, Any] = {"guidance_scale": 1.0}

VELOCITY = {"prediction_type": "v_prediction", "_class_name": "DDIMScheduler", "set_alpha_to_one": True}
SCHNELL = {"guidance_embeds": False, "latent_channels": 16, "scheduler": {"use_dynamic_shifting": False, "shift": 1.0}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("sd1", {}),
    "sd1-velocity": ("sd1", {"scheduler": VELOCITY}),
    "sdxl": ("sdxl", {}),
    "flux1": ("flux1", {}),
    "flux1-schnell": ("flux1", SCHNELL),
}
SHORT, LONG = "a red photo", "the photo of a dog, 2 cats and a red house by the sea; it is raining"


@dataclass
class Rig:
    """One family on one tiny checkpoint: ours and the official pipeline, with separate weights of equal value."""

    family: Family
    folder: Path
    source: Source = field(init=False)
    parts: Parts = field(init=False)
    official: Any = field(init=False)

    def __post_init__(self) -> None:
        self.source = Source(str(self.folder), {})
        self.family.accept(self.source)
        wanted = (*self.family.text_parts, *self.family.media_parts, self.family.denoiser, "scheduler")
        self.parts = self.family.load(self.source, wanted, torch.float32)
        self.official = DiffusionPipeline.from_pretrained(self.folder)
        self.official.set_progress_bar_config(disable=True)

    @property
    def denoiser(self) -> nn.Module:
        """The official pipeline's network."""
        return getattr(self.official, self.family.denoiser)

    def latent(self, width: int, height: int, n: int, seed: int = 0) -> Tensor:
        """Random latents [n, C, h, w] of the model's own channels."""
        rate = self.family.geometry(self.source).rate
        channels = self.parts["vae"].config.latent_channels
        return torch.randn(n, channels, height // rate, width // rate, generator=generator(seed))

    def run(self, prompts: Sequence[str], width: int, height: int, **settings: Any) -> Tensor:
        """What the official pipeline makes of plain text."""
        size = {"width": width, "height": height, "output_type": "pt"}
        extra = OFFICIAL.get(self.family.name, {})
        with torch.no_grad():
            return self.official(prompt=list(prompts), **{**size, **extra, **settings}).images

    def cond(self, captions: Sequence[str], width: int, height: int) -> Cond:
        """What training passes for uncropped pictures of this size, collated."""
        size = (width, height)
        frame = self.family.frame_cond(Framing(original=size, scaled=size, corner=(0, 0), size=size))
        with torch.no_grad():
            return self.family.collate(
                [{**c, **frame} for c in self.family.encode_text(self.parts, [Prompt(c) for c in captions])]
            )

    def objective(self) -> Any:
        """The objective of this checkpoint."""
        return self.family.objective(self.source, None)


@pytest.fixture(params=sorted(CASES), scope="module")
def rig(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Rig:
    """Every family and variation."""
    return make(tiny, *CASES[request.param])


def make(tiny: Callable[..., Path], name: str, variation: dict[str, Any] | None = None, **options: Any) -> Rig:
    """A rig for one family."""
    cls = families.get(name)
    return Rig(cls(cls.Options(**{**OPTIONS.get(name, {}), **options})), tiny(name, **(variation or {})))


def pack(x: Tensor, rig: Rig) -> Tensor:
    """Latents in the layout that the pipeline keeps them in."""
    return FluxPipeline._pack_latents(x, *x.shape) if rig.family.name == "flux1" else x


def unpack(x: Tensor, rig: Rig, width: int, height: int) -> Tensor:
    """The pipeline's own way back."""
    if rig.family.name != "flux1":
        return x
    return FluxPipeline._unpack_latents(x, height, width, rig.official.vae_scale_factor)


class Recorder:
    """Notes the arguments of every call of a network by name; `answer` replaces the network where it is given."""

    def __init__(self, network: nn.Module, answer: Callable[[dict[str, Any]], Tensor] | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.network, self.forward = network, network.forward
        self.signature, self.answer = inspect.signature(network.forward), answer

    def __enter__(self) -> Recorder:
        def forward(*args: Any, **kwargs: Any) -> Any:
            bound = self.signature.bind(*args, **kwargs)
            bound.apply_defaults()
            self.calls.append(dict(bound.arguments))
            return (self.answer(self.calls[-1]),) if self.answer else self.forward(*args, **kwargs)

        self.network.forward = forward
        return self

    def __exit__(self, *_: object) -> None:
        self.network.forward = self.forward

    def inputs(self) -> list[Tensor]:
        """The noisy input of every call: a denoiser's first argument."""
        return [next(iter(call.values())) for call in self.calls]


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Equal values through dicts and tuples; one number for the whole batch may stand for one per item."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor), where
        theirs = theirs.expand(ours.shape) if theirs.ndim == 0 else theirs
        torch.testing.assert_close(ours.double(), theirs.double(), atol=1e-5, rtol=1e-5, msg=lambda m: f"{where}: {m}")
    else:
        assert ours == theirs, where


# -- the call ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64)])
def test_call_parity(rig: Rig, width: int, height: int) -> None:
    """At every step, every argument that the official pipeline gives its network is the one that `predict` gives."""
    raw = rig.latent(width, height, 2)
    with Recorder(rig.denoiser) as theirs:
        given = {"latents": pack(raw, rig), "num_inference_steps": 3}
        rig.run([SHORT, LONG], width, height, **given, **NO_GUIDANCE)
    cond = rig.cond([SHORT, LONG], width, height)
    assert len(theirs.calls) >= 3
    for i, (call, seen) in enumerate(zip(theirs.calls, theirs.inputs(), strict=True)):
        t = (rig.official.scheduler.timesteps[i] / 1000).float().expand(2)
        with Recorder(rig.parts.network) as ours, torch.no_grad():
            out = rig.family.predict(rig.parts.network, unpack(seen, rig, width, height), t, cond)
        assert out.shape == raw.shape
        assert_same(ours.calls[0], call, f"step {i}")
    if not isinstance(rig.objective(), Diffusion):
        assert_same(unpack(theirs.inputs()[0], rig, width, height), raw, "packing")


def test_answer_parity(rig: Rig) -> None:
    """From one fixed answer, the pipeline's scheduler and our objective reach the same next input of the network."""
    width, height = 96, 64
    answer = torch.randn(pack(rig.latent(width, height, 1), rig).shape, generator=generator(5))
    with Recorder(rig.denoiser, lambda _: answer) as theirs:
        rig.run(
            [SHORT],
            width,
            height,
            latents=pack(rig.latent(width, height, 1), rig),
            num_inference_steps=3,
            **NO_GUIDANCE,
        )
    now, after = (unpack(x, rig, width, height) for x in theirs.inputs()[:2])
    t, t_after = (rig.official.scheduler.timesteps[:2] / 1000).float()[:, None]
    with Recorder(rig.parts.network, lambda _: answer), torch.no_grad():
        prediction = rig.family.predict(rig.parts.network, now, t, rig.cond([SHORT], width, height))
    objective = rig.objective()
    clean = objective.clean(prediction, Noised(now, t, now, now))
    expected = objective.noised(clean, implied_noise(objective, now, clean, t), t_after).x
    torch.testing.assert_close(after, expected, atol=2e-4, rtol=2e-4)


def implied_noise(objective: Any, x: Tensor, clean: Tensor, t: Tensor) -> Tensor:
    """The noise that together with `clean` makes x at t."""
    if objective.flow:
        return (x - (1 - expand(t, x)) * clean) / expand(t, x)
    a = expand(objective.alphas_cumprod[(t * 1000).round().long()], x)
    return (x - a.sqrt() * clean) / (1 - a).sqrt()


def test_known_answer(rig: Rig) -> None:
    """A network that knows one latent: the official pipeline gives back what the autoencoder makes of that latent.

    The latent is what we cache for a picture, so this also proves its scale and shift. SD 1's published scheduler stops
    at step 0 of the schedule, short of the clean latent (set_alpha_to_one: false): there we expect exactly that latent.
    """
    width, height, objective = 64, 96, rig.objective()
    pixels = picture(width, height)
    with torch.no_grad():
        z = rig.family.encode_media(rig.parts, Media(pixels))
        raw = rig.official.vae.encode(pixels).latent_dist.mode()

    def knows(call: dict[str, Any]) -> Tensor:
        x = unpack(next(iter(call.values())), rig, width, height)
        t = call["timestep"].reshape(1).float() / (1 if objective.flow else 1000)
        return pack(objective.noised(z, implied_noise(objective, x, z, t), t).target, rig)

    with Recorder(rig.denoiser, knows) as theirs:
        out = rig.run([SHORT], width, height, num_inference_steps=6, generator=generator(3), **NO_GUIDANCE)
    if type(rig.official.scheduler).__name__ == "PNDMScheduler":
        first = theirs.calls[0]
        noise = implied_noise(objective, first["sample"], z, first["timestep"].reshape(1) / 1000)
        raw = objective.noised(z, noise, torch.zeros(1)).x / rig.official.vae.config.scaling_factor
    with torch.no_grad():
        expected = rig.official.image_processor.postprocess(rig.official.vae.decode(raw).sample, output_type="pt")
    wrong = (out - expected).abs().max().item()
    show(f"{rig.family.name}: largest pixel error {wrong:.1e}, spread of the picture {expected.std():.2f}")
    assert wrong < 1e-3


def show(text: str) -> None:
    """Put a figure into the test log (`pytest -s`)."""
    sys.stdout.write(f"\n{text}\n")


def picture(width: int, height: int) -> Tensor:
    """A smooth random picture [1, 3, height, width] in -1..1."""
    coarse = torch.rand(1, 3, 4, 4, generator=generator(9)) * 2 - 1
    return nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(-1, 1)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "steps"), [("sd1", 250), ("sd1-velocity", 150), ("sdxl", 200), ("flux1", 100)])
def test_overfit_and_sample(tiny: Callable[..., Path], case: str, steps: int) -> None:
    """Trained on one latent, the official sampler gives that latent back; with the target's sign flipped it does not.

    A network trained on the negated target is the trained network with its answer negated, so that it is not trained
    a second time.
    """
    rig, size = make(tiny, *CASES[case]), 16
    cells = rig.latent(size, size, 1).shape
    # mostly one value per channel: a convolution without a sense of place cannot learn much else in so few steps
    patches = torch.randn(*cells[:2], 2, 2, generator=generator(4))
    z = torch.randn(*cells[:2], 1, 1, generator=generator(6)) + 0.4 * nn.functional.interpolate(patches, cells[2:])
    z = z / z.std()
    train(rig, z, rig.cond([SHORT] * 16, size, size), steps)
    getattr(rig.official, rig.family.denoiser).load_state_dict(rig.parts.network.state_dict())
    right = cosine(sample(rig, size), z)
    with_sign = rig.denoiser.register_forward_hook(lambda m, a, out: (-out[0],))
    flipped = cosine(sample(rig, size), z)
    with_sign.remove()
    show(f"{case}: cosine {right:.3f}, with the sign flipped {flipped:.3f}")
    assert right >= 0.9
    assert flipped < 0.5


def train(rig: Rig, z: Tensor, cond: Cond, steps: int) -> None:
    """Full rank on one latent, by the engine's own trainer."""
    family, objective, count = rig.family, rig.objective(), len(next(iter(cond.values())))
    shift = family.shift(z, {}, rig.source.config("scheduler")) if objective.flow else 1.0
    spec = TrainSpec(
        steps=steps,
        lr=1e-2,
        schedule="cosine",
        precision="fp32",
        optimizer_options={"betas": [0.9, 0.99], "weight_decay": 0},
    )
    adapter = adapters.build(FullSpec(), family, rig.parts)
    optimizer, scheduler = optimizers.build(spec, adapter.parameters())
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    trainer = Trainer(
        family, rig.parts, adapter, objective, family.timesteps, lambda _, __: shift, Stack(),
        accelerator.prepare(optimizer), scheduler, accelerator, spec,
    )  # fmt: skip
    batch = Batch(z.repeat(count, 1, 1, 1), cond, ("the only one",) * count, tuple(range(count)), count)
    rig.parts.network.train()
    for _ in range(steps):
        trainer.step([batch])


def sample(rig: Rig, size: int) -> Tensor:
    """One latent from the official pipeline without guidance."""
    drawn = {"num_inference_steps": 12, "generator": generator(77), "output_type": "latent"}
    return unpack(rig.run([SHORT], size, size, **drawn, **NO_GUIDANCE), rig, size, size)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two tensors as vectors."""
    return nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


# -- text, media, sampling from the cache ------------------------------------------------------------------------------


def test_encode_text_is_the_pipelines(rig: Rig) -> None:
    """Each caption's tensors are exactly what the official pipeline makes of it alone, and of an empty prompt."""
    settings = {**({"device": "cpu", "num_images_per_prompt": 1} if rig.family.name == "sd1" else {})}
    if rig.family.name != "flux1":
        settings["do_classifier_free_guidance"] = False
    with torch.no_grad():
        ours = rig.family.encode_text(rig.parts, [Prompt(SHORT), Prompt(LONG)])
        for caption, cond in zip([SHORT, LONG], ours, strict=True):
            out = rig.official.encode_prompt(caption, **settings, **OFFICIAL.get(rig.family.name, {}))
            theirs = [o[0] for o in out if o is not None and o.shape[0] == 1]
            assert len(cond) == len(theirs)
            for a, b in zip(cond.values(), theirs, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours[0]["embeds"], ours[1]["embeds"])


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_empty_prompt(tiny: Callable[..., Path], zeros: bool) -> None:
    """The empty caption is what the pipeline uses without a negative prompt: zeros only where the index says so."""
    rig = make(tiny, "sdxl", {"force_zeros": zeros})
    with torch.no_grad():
        _, negative, _, pooled = rig.official.encode_prompt(SHORT, do_classifier_free_guidance=True)
        empty = rig.family.encode_text(rig.parts, [Prompt(LONG), Prompt("")])[1]
    assert bool(negative.any()) is not zeros
    torch.testing.assert_close(empty["embeds"], negative[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(empty["pooled"], pooled[0], atol=1e-5, rtol=1e-5)


def test_sampling_from_cached_text_is_the_pipelines(rig: Rig) -> None:
    """With guidance, our call of the pipeline draws the same picture as the official pipeline from plain text."""
    width, height, guidance = 96, 64, 4.0
    embedded = rig.source.config(rig.family.denoiser).get("guidance_embeds")
    theirs = {"guidance_scale": guidance}
    if rig.family.name == "flux1" and not embedded:
        theirs = {"true_cfg_scale": guidance, "negative_prompt": [""]}
    expected = rig.run([LONG], width, height, num_inference_steps=2, generator=generator(1), **theirs)
    wants = rig.family.wants_negative(rig.source, guidance)
    assert wants is not bool(embedded)
    with torch.no_grad():
        cond, empty = rig.family.encode_text(rig.parts, [Prompt(LONG), Prompt("")])
        request = Request(cond, empty if wants else None, width, height, 2, guidance, 1)
        size = {"width": width, "height": height, "num_inference_steps": 2, "generator": generator(1)}
        out = rig.family.pipe(rig.parts)(**rig.family.call(rig.parts, request), **size, output_type="pt").images
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    plain = rig.run([LONG], width, height, num_inference_steps=2, generator=generator(1), **NO_GUIDANCE)
    assert (plain - expected).abs().max() > 1e-3, "guidance changed nothing, so this proved nothing"


def test_geometry(rig: Rig) -> None:
    """A picture of the smallest allowed size passes the encoder and the network; one cell has `rate` pixels."""
    geometry = rig.family.geometry(rig.source)
    assert (geometry.rate, geometry.multiple) == (4, 8)
    side = geometry.multiple
    with torch.no_grad():
        z = rig.family.encode_media(rig.parts, Media(torch.rand(1, 3, side, side)))
        assert z.shape[-2:] == (side // geometry.rate,) * 2
        out = rig.family.predict(rig.parts.network, z, torch.tensor([0.5]), rig.cond([SHORT], side, side))
    assert out.shape == z.shape
    assert torch.isfinite(out).all()


def test_time_ends(rig: Rig) -> None:
    """t = 0 and t = 1 give finite answers."""
    x = rig.latent(64, 64, 2)
    with torch.no_grad():
        out = rig.family.predict(rig.parts.network, x, torch.tensor([0.0, 1.0]), rig.cond([SHORT, LONG], 64, 64))
    assert torch.isfinite(out).all()


def test_sdxl_is_told_of_the_crop(tiny: Callable[..., Path]) -> None:
    """Height before width, and the corner as (top, left)."""
    framing = Framing(original=(640, 480), scaled=(128, 96), corner=(16, 3), size=(96, 88))
    ids = families.get("sdxl")().frame_cond(framing)["time_ids"]
    assert ids.tolist() == [480, 640, 3, 16, 88, 96]


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux1"])
def test_token_counts(tiny: Callable[..., Path], name: str) -> None:
    """Counts are those of the encoder's own input; only captions over the limit are over it."""
    rig = make(tiny, name)
    tokenizers = {p: rig.parts[p] for p in rig.family.text_parts if p.startswith("tokenizer")}
    limit = {"sd1": 77, "sdxl": 77, "flux1": 32}[name]
    for caption, fits in [(SHORT, True), ("xyzzy " * 100, False)]:
        counts = rig.family.token_counts(tokenizers, caption)
        assert {c[0] for c in counts} == ({"tokenizer_2"} if name == "flux1" else set(tokenizers))
        for part, has, takes in counts:
            assert takes == limit
            assert has == len(tokenizers[part](caption).input_ids)
            assert (has <= takes) is fits


# -- block description and adapter presets -----------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_are_as_described(tiny: Callable[..., Path], checkpointing: bool) -> None:
    """Every block is reached in the described order, its tokens are the picture's, aligned arguments cover text too."""
    rig = make(tiny, "flux1")
    network, (width, height), text = rig.parts.network, (64, 48), 32
    if checkpointing:
        network.train()
        network.enable_gradient_checkpointing()
    cells, reached, out = (height // 8) * (width // 8), [], []
    described = walk(rig.family.blocks, network)
    assert len(described) == 4

    def check(place: int) -> Callable[[Any], None]:
        def see(call: Any) -> None:
            reached.append(place)
            assert call.tokens.shape[:2] == (2, cells)
            for about, value in call.aligned():
                value = tuple(value.values()) if isinstance(value, dict) else value
                for table in value if isinstance(value, tuple) else (value,):
                    assert [table.shape[d] for d in about.dims] == [text + cells] * len(about.dims)

        return see

    for i, (module, blocks) in enumerate(described):
        on_input(module, blocks, check(i))
        on_output(module, blocks, lambda tokens: out.append(tokens.shape[:2]) or tokens)
    x = rig.latent(width, height, 2)
    rig.family.predict(network, x, torch.tensor([0.3, 0.6]), rig.cond([SHORT, LONG], width, height))
    assert reached == list(range(len(described)))
    assert out == [(2, cells)] * len(described)


def real_network(name: str) -> nn.Module:
    """The published network without weights."""
    if name == "flux1":
        return FluxTransformer2DModel(guidance_embeds=True)
    common = {"sample_size": 64, "layers_per_block": 2}
    if name == "sd1":
        return UNet2DConditionModel(**common, cross_attention_dim=768, attention_head_dim=8)
    return UNet2DConditionModel(
        **common,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


EXPECTED = {
    # published parameters in millions; modules per preset: SD 1 has 16 attention levels with 8 projections each,
    # SDXL 70 layers with 8; FLUX 19 two-stream blocks with 8 and 38 one-stream blocks with 3
    "sd1": (859.5, {"default": 16 * 8, "attention+feed-forward": 16 * 10, "all-linear": 16 * 10 + 32 + 22}),
    "sdxl": (2567.5, {"default": 70 * 8, "attention+feed-forward": 70 * 10, "all-linear": 70 * 10 + 22 + 17}),
    "flux1": (
        11901.4,
        {
            "default": 19 * 8 + 38 * 3,
            "attention+feed-forward": 19 * 12 + 38 * 5,
            "all-linear": 19 * 14 + 38 * 6,
        },
    ),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_true_size(name: str) -> None:
    """The published size, and how many layers each adapter preset reaches there."""
    millions, layers = EXPECTED[name]
    with torch.device("meta"):
        network = real_network(name)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    found = {preset: matches(network, pattern) for preset, pattern in families.get(name).targets.items()}
    show(f"{name}: { {k: len(v) for k, v in found.items()} }")
    assert {k: len(v) for k, v in found.items()} == layers
    assert next(iter(families.get(name).targets)) == "default"
    assert "proj_out" not in found["all-linear"]


def matches(network: nn.Module, pattern: str) -> list[str]:
    """Every module that a preset names, whatever its kind: peft must be able to adapt all of them."""
    found = {n: m for n, m in network.named_modules() if re.fullmatch(pattern, n)}
    kinds = Counter(type(m).__name__ for m in found.values())
    assert set(kinds) <= {"Linear", "Conv2d"}, kinds
    return sorted(found)


# -- what is read from the source, and refused -------------------------------------------------------------------------


def test_shift_golden() -> None:
    """FLUX.1's published values for 1024² and 512²; constant beyond; off where the model says so."""
    family, dynamic = families.get("flux1")(), {"use_dynamic_shifting": True}
    shift = {side: family.shift(torch.zeros(1, 16, side // 8, side // 8), {}, dynamic) for side in (512, 1024, 2048)}
    assert shift[1024] == pytest.approx(3.158193, abs=1e-6)
    assert shift[512] == pytest.approx(1.877611, abs=1e-6)
    assert shift[2048] == shift[1024]
    assert family.shift(torch.zeros(1, 16, 128, 128), {}, {"use_dynamic_shifting": False, "shift": 1.0}) == 1.0


def test_shift_is_the_schedulers(tiny: Callable[..., Path]) -> None:
    """Our shift moves the pipeline's own unshifted times to the times it samples at."""
    for case in ("flux1", "flux1-schnell"):
        rig = make(tiny, *CASES[case])
        rig.run([SHORT], 96, 64, num_inference_steps=5, output_type="latent")
        s = rig.family.shift(rig.latent(96, 64, 1), {}, rig.source.config("scheduler"))
        expected = shifted(torch.linspace(1, 1 / 5, 5), s)
        torch.testing.assert_close(rig.official.scheduler.timesteps / 1000, expected, atol=1e-5, rtol=1e-5)


def test_objective_is_read_from_the_scheduler(tiny: Callable[..., Path]) -> None:
    """Epsilon where nothing is said, velocity where it is, the alphas of the model's own scheduler."""
    plain, velocity = make(tiny, *CASES["sd1"]), make(tiny, *CASES["sd1-velocity"])
    assert (plain.objective().predicts, velocity.objective().predicts) == ("epsilon", "velocity")
    torch.testing.assert_close(plain.objective().alphas_cumprod, plain.official.scheduler.alphas_cumprod)


@pytest.mark.parametrize(
    ("name", "variation", "snr_gamma", "says"),
    [
        ("sd1", {"scheduler": {"prediction_type": "sample"}}, None, "prediction_type 'sample'"),
        ("sd1", {"scheduler": {"rescale_betas_zero_snr": True}}, 5.0, "remove train.snr_gamma"),
        ("sd1", {"scheduler": {"num_train_timesteps": 500}}, None, "1000 steps"),
        ("flux1", {}, 5.0, "train.snr_gamma has no meaning for flux1; remove it."),
    ],
)
def test_refuses_what_cannot_be_trained(
    tiny: Callable[..., Path], name: str, variation: dict[str, Any], snr_gamma: float | None, says: str
) -> None:
    """A sentence that names the setting or the source."""
    source = Source(str(tiny(name, **variation)), {})
    with pytest.raises(UserError, match=re.escape(says)):
        families.get(name)().objective(source, snr_gamma)


@pytest.mark.parametrize(("family", "folder"), [("flux1", "sd1"), ("sd1", "sdxl"), ("sdxl", "flux1")])
def test_refuses_another_familys_model(tiny: Callable[..., Path], family: str, folder: str) -> None:
    """The sentence names both sides."""
    source = Source(str(tiny(folder)), {})
    with pytest.raises(UserError, match=f"family {family} needs one of"):
        families.get(family)().accept(source)
