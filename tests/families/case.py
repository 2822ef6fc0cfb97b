"""The proofs that a family is supported, and what each family says about itself for them.

Official means: loaded by diffusers' own `DiffusionPipeline.from_pretrained` from the same folder and given plain text.
A family has one `Case` per task and variant; it overrides what its pipeline does differently. A proof is a method, so
that a case can add to it (never weaken it).
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from tuner import adapters, export, families, optimizers
from tuner.adapter import Adapter, Writes, Written
from tuner.blocks import on_input, on_output, walk
from tuner.extension import Stack
from tuner.family import Family, Framing, Request
from tuner.loop import Trainer
from tuner.recipe import FullSpec, LoraSpec, TrainSpec
from tuner.source import Source
from tuner.types import Batch, Cond, Media, Noised, Parts, Prompt, expand, generator

SHORT, LONG = "a red photo", "the photo of a dog, 2 cats and a red house by the sea; it is raining"


@dataclass(frozen=True)
class Shape:
    """What is drawn: pixels, frames of a clip, seconds of sound."""

    width: int = 64
    height: int = 64
    frames: int = 1
    seconds: float = 0.0


class Recorder:
    """Notes the arguments of every call of a network by name; `answer` replaces the network where it is given."""

    def __init__(self, network: nn.Module, answer: Callable[[dict[str, Any]], Any] | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.network, self.forward = network, network.forward
        self.signature, self.answer = inspect.signature(network.forward), answer

    def __enter__(self) -> Recorder:
        def forward(*args: Any, **kwargs: Any) -> Any:
            bound = self.signature.bind(*args, **kwargs)
            bound.apply_defaults()
            # copies: some pipelines go on writing into the tensor that they passed
            self.calls.append({k: v.clone() if isinstance(v, Tensor) else v for k, v in bound.arguments.items()})
            return self.answer(self.calls[-1]) if self.answer else self.forward(*args, **kwargs)

        self.network.forward = forward
        return self

    def __exit__(self, *_: object) -> None:
        self.network.forward = self.forward


@dataclass
class Rig:
    """One family on one tiny checkpoint: ours and the official pipeline, with separate weights of equal value."""

    case: Case
    folder: Path
    source: Source = field(init=False)
    family: Family = field(init=False)
    parts: Parts = field(init=False)
    official: Any = field(init=False)

    def __post_init__(self) -> None:
        cls = families.get(self.case.family)
        self.family = cls(cls.Options(**self.case.chosen(self.folder)), self.case.task)
        self.source = Source(str(self.folder), {})
        self.family.accept(self.source)
        family = self.family
        wanted = (*family.text_parts, family.denoiser, *family.media_parts, *family.sample_parts(self.source))
        self.parts = family.load(self.source, tuple(dict.fromkeys(wanted)), torch.float32)
        self.official = self.case.official(self.folder)

    @property
    def denoiser(self) -> nn.Module:
        """The official pipeline's network that this family trains."""
        return getattr(self.official, self.family.denoiser)

    @cached_property
    def objective(self) -> Any:
        """The objective of this checkpoint."""
        return self.family.objective(self.source, None)

    def latent(self, shape: Shape, n: int, seed: int = 0) -> Tensor:
        """Random latents [n, C, ...] of the model's own channels."""
        return torch.randn(n, *self.case.cells(self, shape), generator=generator(seed))

    def cond(self, captions: Sequence[str], shape: Shape) -> Cond:
        """What training passes for uncropped items of this shape with these captions, collated."""
        size, media = (shape.width, shape.height), self.case.media(self, shape, len(captions))
        frame = self.family.frame_cond(Framing(original=size, scaled=size, corner=(0, 0), size=size))
        with torch.no_grad():
            texts = self.family.encode_text(self.parts, self.case.prompts(self, captions, media, shape))
            more = self.family.media_cond(self.parts, media)
        return self.family.collate([{**t, **m, **frame} for t, m in zip(texts, more, strict=True)])

    def exported(self, adapter: Any, folder: Path) -> list[Written]:
        """The adapter's files, written as a run writes them."""
        if isinstance(adapter, Writes):
            return adapter.export(folder, self.source, type(self.family.pipe(self.parts)))
        return export.adapter(adapter, self.family, self.source, self.parts, folder)

    def trainer(self, adapter: Adapter, spec: TrainSpec) -> Trainer:
        """The engine's own trainer around our parts."""
        family, scheduler_config = self.family, self.source.config("scheduler")
        optimizer, scheduler = optimizers.build(spec, adapter.parameters())
        AcceleratorState._reset_state()
        accelerator = Accelerator(mixed_precision="no", cpu=True)
        family.ready(self.parts.network)

        def shift(latents: Tensor, cond: Cond) -> float:
            return family.shift(latents, cond, scheduler_config) if self.objective.flow else 1.0

        return Trainer(
            family, self.parts, adapter, self.objective, family.timesteps, shift, Stack(),
            accelerator.prepare(optimizer), scheduler, accelerator, spec, family.reach(self.source),
        )  # fmt: skip


def show(text: str) -> None:
    """Put a figure into the test log (`pytest -s`)."""
    sys.stdout.write(f"\n{text}\n")


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two tensors as vectors."""
    return nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Equal values through dicts, lists and tuples; one number for a whole batch may stand for one per item."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}.{i}")
    elif isinstance(theirs, Tensor) or (isinstance(theirs, int | float) and isinstance(ours, Tensor)):
        assert isinstance(ours, Tensor), where
        theirs = torch.as_tensor(theirs)
        theirs = theirs.expand(ours.shape) if theirs.ndim == 0 else theirs
        torch.testing.assert_close(ours.double(), theirs.double(), atol=1e-5, rtol=1e-5, msg=lambda m: f"{where}: {m}")
    else:
        assert ours == theirs, where


def implied_noise(objective: Any, x: Tensor, clean: Tensor, t: Tensor) -> Tensor:
    """The noise that together with `clean` makes x at t."""
    if objective.flow:
        return (x - (1 - expand(t, x)) * clean) / expand(t, x)
    a = expand(objective.alpha(t), x)
    return (x - a.sqrt() * clean) / (1 - a).sqrt()


class Case:
    """One family, task and variant. Subclasses set what stands here without a value, and override what differs."""

    name: str
    family: str
    task = "generate"
    options: dict[str, Any] = {}
    """Family options, small where the real ones are long; `settings` says the same to the official pipeline."""
    settings: dict[str, Any] = {}
    no_guidance: dict[str, Any] = {"guidance_scale": 1.0}
    guidance = 4.0
    """How strongly the sampling from cached text is guided."""
    shapes: tuple[Shape, ...] = (Shape(64, 64), Shape(96, 64))
    """Two sizes, one of them not square; for clips and sound also two lengths."""
    batch = 2
    """How many prompts the official pipeline takes at once in the call parity (1 where it takes one)."""
    pads_are_read = False
    """Whether the official network itself attends the padding of a batch, so that a batch differs from its items."""
    without_gradient: str = r"(?!)"
    """Adapter tensors that the architecture gives no gradient (the facts list them), as a regular expression."""
    overfit_shape = Shape(16, 16)
    overfit_steps, overfit_lr, overfit_batch = 200, 1e-2, 16
    sampling_steps = 12
    noise = 77
    """Seed of the noise that `sampled` begins with."""
    quick = False
    """Whether the training proof is among the default tests: for a structurally varied third of the families."""
    millions: float
    """Published number of parameters of the network in millions, and how far ours may be from it."""
    tolerance = 0.06
    layers: dict[str, int]
    """How many layers each LoRA preset reaches in the published network."""

    # -- what a case must say ------------------------------------------------------------------------------------------

    def build(self, folder: Path) -> None:
        """Write a tiny random checkpoint of the real classes in the Hub's layout (see `tests.tiny`)."""
        raise NotImplementedError

    def real(self) -> nn.Module:
        """The published network from its real configuration; called on the meta device."""
        raise NotImplementedError

    # -- what a case may say differently -------------------------------------------------------------------------------

    def chosen(self, folder: Path) -> dict[str, Any]:
        """The family's options for the checkpoint in this folder: `options`, and what lies beside it."""
        return self.options

    def official(self, folder: Path) -> Any:
        """The official pipeline, loaded without our help."""
        pipe = DiffusionPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def cells(self, rig: Rig, shape: Shape) -> tuple[int, ...]:
        """Shape of one latent without the batch axis."""
        g = rig.family.geometry(rig.source)
        channels = rig.parts["vae"].config.latent_channels
        if rig.family.modality == "audio":
            return channels, round(shape.seconds * g.sample_rate) // g.hop
        plane = (shape.height // g.rate, shape.width // g.rate)
        if rig.family.modality == "video":
            return channels, (shape.frames - 1) // g.frame_step + 1, *plane
        return channels, *plane

    def media(self, rig: Rig, shape: Shape, n: int) -> Media:
        """Smooth random items of this shape; edit cases add references."""
        if rig.family.modality == "audio":
            g = rig.family.geometry(rig.source)
            count = round(shape.seconds * g.sample_rate) // g.hop * g.hop
            return Media(sound=smooth((n, g.channels, count), 16) * 0.5)
        if rig.family.modality == "video":
            return Media(smooth((n, 3, shape.frames, shape.height, shape.width), 4), fps=self.fps(rig))
        return Media(smooth((n, 3, shape.height, shape.width), 4))

    def fps(self, rig: Rig) -> float:
        """Frames per second of clips."""
        return rig.family.geometry(rig.source).fps

    def prompts(self, rig: Rig, captions: Sequence[str], media: Media, shape: Shape) -> list[Prompt]:
        """What the text encoders get; references and seconds only where the family reads them."""
        reads = rig.family.reads
        return [
            Prompt(
                caption,
                tuple(r[i] for r in media.references) if "references" in reads else (),
                seconds=shape.seconds if "seconds" in reads else 0.0,
            )
            for i, caption in enumerate(captions)
        ]

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        """The official pipeline on plain text, without guidance unless told; returns its output."""
        with torch.no_grad():
            return pipe(prompt=list(captions), **{**self.size(shape), **self.no_guidance, **self.settings, **settings})

    def size(self, shape: Shape) -> dict[str, Any]:
        """Size and length as the official pipeline calls them."""
        return {"width": shape.width, "height": shape.height, "output_type": "pt"}

    def output(self, out: Any) -> Tensor:
        """The tensor in the pipeline's output (output_type pt)."""
        for name in ("images", "frames", "audios", "image"):
            if hasattr(out, name):
                return torch.as_tensor(getattr(out, name))
        raise AssertionError(f"no media in {type(out)}")

    def guided(self, rig: Rig) -> dict[str, Any]:
        """`guidance` away from the empty prompt, as the official pipeline calls it with plain text."""
        return {"guidance_scale": self.guidance}

    def request(self, rig: Rig, caption: str, shape: Shape, steps: int) -> Request:
        """One sample as a run asks for it: text as the cache holds it; edit cases add their pictures."""
        family, media = rig.family, self.media(rig, shape, 1)
        with torch.no_grad():
            told = [family.encode_text(rig.parts, self.prompts(rig, [c], media, shape))[0] for c in (caption, "")]
        negative = told[1] if family.wants_negative(rig.source, self.guidance) else None
        size = (shape.width, shape.height)
        fps = self.fps(rig) if family.modality == "video" else 0.0
        clip = {"frames": shape.frames, "fps": fps, "seconds": shape.seconds}
        return Request(told[0], negative, *size, steps, self.guidance, seed=1, **clip)

    def pictured(self, rig: Rig, caption: str, shape: Shape, **settings: Any) -> Tensor:
        """What the official pipeline draws from plain text (two pipelines for a model in two halves)."""
        return self.output(self.run(rig.official, [caption], shape, **settings))

    def drawn_from_cache(self, rig: Rig, request: Request) -> Tensor:
        """What we draw, with only the components that a run has loaded then, in the form of `output`."""
        family = rig.family
        there = {family.denoiser, *family.sample_parts(rig.source), *rig.source.flags}
        unloaded = {*family.text_parts, *family.media_parts} - there
        parts = Parts(
            rig.parts.denoiser, {k: v for k, v in rig.parts.components.items() if k not in unloaded}, rig.parts.pipeline
        )
        form = {k: v for k, v in self.size(self.shapes[-1]).items() if k == "output_type"}
        arguments = {**family.sized(request), **family.call(parts, request), **form}
        pipe = family.pipe(parts)
        family.prepare(pipe, request)
        with torch.no_grad():
            return self.output(pipe(**arguments, generator=generator(request.seed)))

    def pack(self, rig: Rig, x: Tensor) -> Tensor:
        """Latents in the layout in which the pipeline keeps and takes them."""
        return x

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        """The way back."""
        return x

    def seen(self, rig: Rig, call: dict[str, Any], shape: Shape) -> Tensor:
        """The noisy latent [B, C, ...] in our layout of a recorded call of the network: its first argument."""
        return self.unpack(rig, next(iter(call.values())), shape)

    def time(self, rig: Rig, i: int) -> Tensor:
        """Our t [] of the official pipeline's step i, read from its scheduler (never from the call)."""
        return (rig.official.scheduler.timesteps[i] / 1000).float()

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        """What the network must return for our target [B, C, ...]: its layout, its sign."""
        return (self.pack(rig, target),)

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        """The official autoencoder path: encode and decode the media as the pipeline does, as the pipeline outputs."""
        vae = rig.official.vae
        with torch.no_grad():
            raw = vae.encode(media.pixels).latent_dist.mode()
            return rig.official.image_processor.postprocess(vae.decode(raw).sample, output_type="pt")

    def tokens(self, rig: Rig, shape: Shape) -> int:
        """Number of media tokens in the described blocks."""
        _, *cells = self.cells(rig, shape)
        return int(torch.tensor(cells).prod()) // 4

    # -- proofs --------------------------------------------------------------------------------------------------------

    def prove_call_parity(self, rig: Rig, shape: Shape) -> None:
        """At every step, every argument that the official pipeline gives its network is the one `predict` gives."""
        captions = [SHORT, LONG][: self.batch] if self.batch > 1 else [LONG]
        raw = rig.latent(shape, len(captions))
        with Recorder(rig.denoiser) as theirs:
            self.run(rig.official, captions, shape, latents=self.pack(rig, raw), num_inference_steps=3)
        assert len(theirs.calls) >= 3
        cond = rig.cond(captions, shape)
        for i, call in enumerate(theirs.calls):
            x = self.seen(rig, call, shape)
            with Recorder(rig.parts.network) as ours, torch.no_grad():
                out = rig.family.predict(rig.parts.network, x, self.time(rig, i).expand(len(captions)), cond)
            assert out.shape == raw.shape
            assert_same(ours.calls[0], call, f"step {i}")
        if rig.objective.flow:
            counts = self.counted(rig, raw, cond)
            assert_same(self.seen(rig, theirs.calls[0], shape) * counts, raw * counts, "packing")

    def prove_answer_parity(self, rig: Rig) -> None:
        """From one fixed answer, the pipeline's scheduler and our objective reach the same next input."""
        shape = self.shapes[-1]
        raw = rig.latent(shape, 1)
        fixed = torch.randn(raw.shape, generator=generator(5))
        stub = lambda call: self.answer(rig, fixed, call, shape)  # noqa: E731
        with Recorder(rig.denoiser, stub) as theirs:
            self.run(rig.official, [SHORT], shape, latents=self.pack(rig, raw), num_inference_steps=3)
        now, after = (self.seen(rig, call, shape) for call in theirs.calls[:2])
        t, t_after = self.time(rig, 0)[None], self.time(rig, 1)[None]
        with Recorder(rig.parts.network, stub), torch.no_grad():
            prediction = rig.family.predict(rig.parts.network, now, t, rig.cond([SHORT], shape))
        torch.testing.assert_close(prediction, fixed, atol=1e-5, rtol=1e-5)
        clean = rig.objective.clean(prediction, Noised(now, t, now, now))
        expected = rig.objective.noised(clean, implied_noise(rig.objective, now, clean, t), t_after).x
        counts = self.counted(rig, now, rig.cond([SHORT], shape))
        torch.testing.assert_close(after * counts, expected * counts, atol=2e-4, rtol=2e-4)

    def counted(self, rig: Rig, x: Tensor, cond: Cond) -> Tensor:
        """1 where the family's answer is used, 0 where not (a given first frame)."""
        emphasis = rig.family.emphasis(x, cond)
        return torch.ones_like(x) if emphasis is None else (emphasis > 0).float().expand_as(x)

    def prove_known_answer(self, rig: Rig) -> None:
        """A network that knows one latent: the official pipeline gives back what the autoencoder makes of it.

        The latent is what we cache for an item, so this also proves its scale, shift and layout (encode round trip).
        """
        shape = self.shapes[-1]
        media = self.media(rig, shape, 1)
        with torch.no_grad():
            z = rig.family.encode_media(rig.parts, media)
        step = iter(range(1000))

        def knows(call: dict[str, Any]) -> Any:
            x, t = self.seen(rig, call, shape), self.time(rig, next(step))[None]
            noise = implied_noise(rig.objective, x, z, t)
            return self.answer(rig, rig.objective.noised(z, noise, t).target, call, shape)

        with Recorder(rig.denoiser, knows):
            out = self.run(rig.official, [SHORT], shape, num_inference_steps=6, generator=generator(3))
        got, expected = self.output(out), self.round_trip(rig, media)
        wrong = (got - expected).abs().max().item()
        show(f"{self.name}: known answer, largest error {wrong:.1e}, spread {expected.std():.2f}")
        assert expected.std() > 1e-3, "a flat item proves nothing"
        assert wrong < 1e-3

    def prove_cached_sampling(self, rig: Rig) -> None:
        """From cached text, with guidance, we draw what the official pipeline draws from plain text."""
        shape, steps = self.shapes[-1], 2

        def official(**guidance: Any) -> Tensor:
            drawn = {"num_inference_steps": steps, "generator": generator(1), **guidance}
            return self.pictured(rig, LONG, shape, **drawn)

        expected, plain = official(**self.guided(rig)), official()
        ours = self.drawn_from_cache(rig, self.request(rig, LONG, shape, steps))
        wrong, changed = (ours - expected).abs().max().item(), (plain - expected).abs().max().item()
        show(f"{self.name}: from cached text differs by {wrong:.1e}; guidance changes {changed:.1e}")
        assert changed > 1e-3, "guidance changed nothing, so this proved nothing"
        assert wrong < 1e-4

    def prove_overfit(self, rig: Rig) -> tuple[float, float]:
        """Trained on one latent, the official sampler gives it back; with the answer's sign flipped it does not."""
        shape = self.overfit_shape
        z = self.learnable(rig, shape)
        cond = rig.cond([SHORT] * self.overfit_batch, shape)
        self.train(rig, z, cond)
        getattr(rig.official, rig.family.denoiser).load_state_dict(rig.parts.network.state_dict())
        right = cosine(*self.used(rig, self.sampled(rig, shape), z, shape))
        with self.flipped(rig):
            wrong = cosine(*self.used(rig, self.sampled(rig, shape), z, shape))
        show(f"{self.name}: overfit cosine {right:.3f}, with the sign flipped {wrong:.3f}")
        assert right >= 0.9
        assert wrong < 0.5
        return right, wrong

    def learnable(self, rig: Rig, shape: Shape) -> Tensor:
        """Mostly one value per channel: few steps cannot teach much else to a network without a sense of place."""
        channels, *cells = self.cells(rig, shape)
        coarse = torch.randn(1, channels, *[min(2, c) for c in cells], generator=generator(4))
        z = torch.randn(1, channels, *[1] * len(cells), generator=generator(6))
        z = z + 0.4 * nn.functional.interpolate(coarse, tuple(cells))
        return z / z.std()

    def used(self, rig: Rig, got: Tensor, z: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """Only what the family answers for."""
        counts = self.counted(rig, z, rig.cond([SHORT], shape))
        return got * counts, z * counts

    def train(self, rig: Rig, z: Tensor, cond: Cond) -> None:
        """Full rank on one latent, by the engine's own trainer."""
        spec = TrainSpec(
            steps=self.overfit_steps,
            lr=self.overfit_lr,
            schedule="cosine",
            precision="fp32",
            optimizer_options={"betas": [0.9, 0.99], "weight_decay": 0},
        )
        trainer, n = rig.trainer(adapters.build(FullSpec(), rig.family, rig.parts), spec), self.overfit_batch
        batch = Batch(z.expand(n, *z.shape[1:]).clone(), cond, ("the only one",) * n, tuple(range(n)), n)
        rig.parts.network.train()
        for _ in range(self.overfit_steps):
            trainer.step([batch])
        rig.parts.network.eval()

    def sampled(self, rig: Rig, shape: Shape) -> Tensor:
        """The last latent [1, C, ...] that the official pipeline's scheduler reaches, without guidance."""
        reached: list[Tensor] = []
        scheduler = rig.official.scheduler
        step = scheduler.step

        def noting(*args: Any, **kwargs: Any) -> Any:
            out = step(*args, **kwargs)
            reached.append(out[0] if isinstance(out, tuple) else out.prev_sample)
            return out

        scheduler.step = noting
        try:
            self.run(
                rig.official, [SHORT], shape, num_inference_steps=self.sampling_steps, generator=generator(self.noise)
            )
        finally:
            del scheduler.step
        return self.unpack(rig, reached[-1], shape)

    @contextmanager
    def flipped(self, rig: Rig) -> Iterator[None]:
        """The official network with its answer negated: what training on the negated target would have made."""

        def negated(module: nn.Module, args: Any, out: Any) -> Any:
            return tuple([-x for x in o] if isinstance(o, list) else -o for o in out)

        hook = rig.denoiser.register_forward_hook(negated)
        try:
            yield
        finally:
            hook.remove()

    def lora(self, rig: Rig, steps: int = 3, targets: str = "default") -> tuple[Adapter, list[float]]:
        """A LoRA (rank 4, alpha 10) trained for a few steps on a random item; with its losses."""
        spec = TrainSpec(steps=steps, lr=2e-2, precision="fp32", optimizer="adamw")
        torch.manual_seed(0)
        adapter = adapters.build(LoraSpec(rank=4, alpha=10, targets=targets), rig.family, rig.parts)
        trainer, shape = rig.trainer(adapter, spec), self.shapes[0]
        batch = Batch(rig.latent(shape, 2, 8), rig.cond([SHORT, LONG], shape), ("a", "b"), (0, 1), 2)
        rig.parts.network.train()
        losses = [trainer.step([batch])["loss"] for _ in range(steps)]
        rig.parts.network.eval()
        return adapter, losses

    def prove_adapter(self, rig: Rig, folder: Path, elsewhere: Callable[..., Tensor]) -> None:
        """A LoRA, exported, draws in a fresh official pipeline of another process what it draws in the trainer."""
        shape = self.shapes[0]
        drawn = {"num_inference_steps": 2, "generator": generator(11)}
        base = self.output(self.run(rig.official, [SHORT], shape, **drawn))
        adapter, _ = self.lora(rig)
        path = rig.exported(adapter, folder)[0].path
        setattr(rig.official, rig.family.denoiser, rig.parts.network)
        with_it = self.output(self.run(rig.official, [SHORT], shape, **{**drawn, "generator": generator(11)}))
        with adapter.disabled():
            without = self.output(self.run(rig.official, [SHORT], shape, **{**drawn, "generator": generator(11)}))
        fresh = elsewhere(self.name, rig.folder, path, rig.family.lora_arguments)
        changed, wrong = (with_it - base).abs().max().item(), (fresh - with_it).abs().max().item()
        show(f"{self.name}: adapter changes the output by {changed:.1e}, elsewhere differs by {wrong:.1e}")
        torch.testing.assert_close(without, base, atol=1e-5, rtol=1e-5)
        assert changed > 1e-4
        assert wrong < max(1e-5, 1e-2 * changed)

    def prove_batch(self, rig: Rig) -> None:
        """A batch of captions of different length is answered as each of its items alone."""
        shape = self.shapes[0]
        x, t = rig.latent(shape, 2, 3), torch.tensor([0.3, 0.8])
        with torch.no_grad():
            both = rig.family.predict(rig.parts.network, x, t, rig.cond([SHORT, LONG], shape))
            assert torch.isfinite(both).all()
            assert both.shape == x.shape
            if self.pads_are_read:
                return
            for i, caption in enumerate([SHORT, LONG]):
                # the second item of a pair, so that its media are those of its place in the batch
                pair = rig.cond([caption, caption], shape)
                alone = rig.family.predict(rig.parts.network, x[[i, i]], t[[i, i]], pair)[i]
                torch.testing.assert_close(both[i], alone, atol=2e-4, rtol=2e-4)

    def prove_time_ends(self, rig: Rig) -> None:
        """t = 0 and t = 1 give finite answers, in the shape of the latent."""
        shape = self.shapes[0]
        x = rig.latent(shape, 2)
        with torch.no_grad():
            out = rig.family.predict(rig.parts.network, x, torch.tensor([0.0, 1.0]), rig.cond([SHORT, LONG], shape))
        assert out.shape == x.shape
        assert torch.isfinite(out).all()

    def prove_blocks(self, rig: Rig, checkpointing: bool) -> None:
        """Every block is reached in the described order, its tokens are the item's, aligned arguments fit them."""
        described = walk(rig.family.blocks, rig.parts.network)
        if not described:
            assert not rig.family.blocks
            return
        shape, reached, out = self.shapes[-1], [], []
        count = self.tokens(rig, shape)
        if checkpointing:
            rig.parts.network.train()
            rig.parts.network.enable_gradient_checkpointing()

        def check(place: int, run: Any) -> Callable[[Any], None]:
            def see(call: Any) -> None:
                reached.append(place)
                length = call.tokens.shape[1]
                assert length == count if run.text == "none" else length > count, (run.path, length, count)
                for about, value in call.aligned():
                    for table in about.tables(value):
                        assert all(table.shape[d] >= count for d in about.dims), (about, table.shape)

            return see

        hooks = []
        for i, (module, run) in enumerate(described):
            hooks.append(on_input(module, run, check(i, run)))
            hooks.append(on_output(module, run, lambda tokens: out.append(tokens.shape[1]) or tokens))
        try:
            x = rig.latent(shape, 2)
            rig.family.predict(rig.parts.network, x, torch.tensor([0.3, 0.6]), rig.cond([SHORT, LONG], shape))
        finally:
            for hook in hooks:
                hook.remove()
            rig.parts.network.eval()
            if checkpointing:
                rig.parts.network.disable_gradient_checkpointing()
        assert reached == list(range(len(described)))
        assert len(out) == len(described)
        assert all(length >= count for length in out)

    def prove_gradients(self, rig: Rig) -> None:
        """Every tensor of an adapter on all linear layers gets a gradient, but those the facts list."""
        adapter = adapters.build(LoraSpec(rank=2, targets=list(rig.family.targets)[-1]), rig.family, rig.parts)
        with torch.no_grad():
            for p in adapter.parameters():
                p.add_(torch.randn(p.shape, generator=generator(1)) * 0.02)
        shape = self.shapes[0]
        rig.family.ready(rig.parts.network)
        rig.parts.network.train()
        x = rig.latent(shape, 2)
        out = rig.family.predict(rig.parts.network, x, torch.tensor([0.3, 0.6]), rig.cond([SHORT, LONG], shape))
        (out * torch.randn(out.shape, generator=generator(2))).mean().backward()
        rig.parts.network.eval()
        own = dict(rig.parts.network.named_parameters())
        none = [n for n, p in own.items() if p.requires_grad and (p.grad is None or not p.grad.any())]
        assert len(none) < len(adapter.parameters())
        surprising = [n for n in none if not re.search(self.without_gradient, n)]
        assert not surprising, surprising

    def prove_true_size(self) -> None:
        """The published size, and how many layers each adapter preset reaches there."""
        with torch.device("meta"):
            network = self.real()
        count = sum(p.numel() for p in network.parameters()) / 1e6
        presets = families.get(self.family).targets
        found = {preset: matches(network, pattern) for preset, pattern in presets.items()}
        reached = {k: len(v) for k, v in found.items()}
        show(f"{self.name}: {count:.1f} M parameters (published {self.millions})")
        for preset, names in found.items():
            show(f"  LoRA {preset}: {len(names)} layers, {lora_size(network, names) / 1e6:.1f} M parameters at rank 16")
        assert abs(count - self.millions) <= self.tolerance
        assert next(iter(presets)) == "default"
        assert reached == self.layers

    def golden(self, rig: Rig) -> list[float]:
        """The first five losses of a LoRA on the tiny model, seed 0."""
        return self.lora(rig, steps=5)[1]


def smooth(shape: tuple[int, ...], coarse: int) -> Tensor:
    """A smooth random item in -1..1: coarse noise, enlarged."""
    n, channels, *cells = shape
    small = torch.rand(n, channels, *[min(coarse, c) for c in cells], generator=generator(9)) * 2 - 1
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(cells)]
    return nn.functional.interpolate(small, tuple(cells), mode=mode).clamp(-1, 1)


def lora_size(network: nn.Module, names: Sequence[str], rank: int = 16) -> int:
    """Parameters of a LoRA on these layers: rank * (inputs + outputs), a convolution's kernel in its inputs."""
    weights = [network.get_parameter(f"{name}.weight") for name in names]
    return sum(rank * (weight[0].numel() + weight.shape[0]) for weight in weights)


def matches(network: nn.Module, pattern: str) -> list[str]:
    """Every module that a preset names, whatever its kind: peft must be able to adapt all of them."""
    found = {n: m for n, m in network.named_modules() if re.fullmatch(pattern, n)}
    kinds = Counter(type(m).__name__ for m in found.values())
    assert set(kinds) <= {"Linear", "Conv2d", "Conv1d"}, kinds
    return sorted(found)
