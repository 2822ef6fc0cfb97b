"""ControlNet and control LoRA: they begin as the base, are called as the official pipeline calls them, and obey.

Official means: the class of diffusers that the family names, around components loaded without our help, with the
exported folder loaded by its own `from_pretrained` or `load_lora_weights`.
"""

from __future__ import annotations

import copy
import inspect
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image, ImageOps
from torch import Tensor

from tests.families.case import LONG, SHORT, Case, Recorder, Rig, Shape, assert_same, cosine, generator, show
from tests.families.cases import all_cases
from tests.families.packed import picture
from tuner import adapters
from tuner.adapters import controlnet
from tuner.control import CONTROLNET
from tuner.data import tensor
from tuner.recipe import Beta, ControlSpec, FullSpec, TrainSpec
from tuner.types import Batch, Cond, Media, Parts

FORMS = [
    ("sd1", "branch"), ("sd2", "branch"), ("sdxl", "branch"), ("sd3", "branch"), ("sd3-medium-dual", "branch"),
    ("flux1", "branch"), ("flux1", "lora"), ("flux1-schnell", "branch"), ("auraflow", "lora"),
    ("pixart_sigma", "lora"), ("hidream", "lora"),
]  # fmt: skip
OFFICIAL = [(name, form) for name, form in FORMS if name not in ("auraflow", "pixart_sigma", "hidream")]
QUICK = [("sd1", "branch"), ("flux1", "branch"), ("flux1", "lora")]


def marked(forms: Sequence[tuple[str, str]], quick: Sequence[tuple[str, str]]) -> list[Any]:
    """The forms as parameters; all but the quick ones wait for `-m families`."""
    return [pytest.param(n, f, marks=() if (n, f) in quick else pytest.mark.families, id=f"{n}-{f}") for n, f in forms]


@pytest.fixture
def rigged(checkpoint: Callable[[Case], Path]) -> Callable[[str], Rig]:
    """rigged(case name) → its models, of this test alone."""

    def get(name: str) -> Rig:
        case = copy.copy(all_cases()[name])
        return Rig(case, checkpoint(case))

    return get


def attached(rig: Rig, form: str, **settings: Any) -> Any:
    """A fresh adapter of this form; of the tiny networks' few blocks, one of each kind is copied."""
    blocks = rig.family.control.branch.blocks if form == "branch" else ()
    layers = {"layers": [1] * len(blocks)} if blocks and "start" not in settings else {}
    torch.manual_seed(0)
    return adapters.build(ControlSpec(form=form, **layers, **settings), rig.family, rig.parts)


def nudged(adapter: Any) -> Any:
    """The same with its zeros made random."""
    with torch.no_grad():
        for i, p in enumerate(adapter.parameters()):
            p.add_(torch.randn(p.shape, generator=generator(i)) * 0.05)
    return adapter


def seen(rig: Rig, pictures: Sequence[Any]) -> Tensor:
    """What a batch holds of these control pictures."""
    pixels = torch.stack([tensor.to_tensor(p) for p in pictures])
    if rig.family.control.sees == "pixels":
        return (pixels + 1) / 2
    with torch.no_grad():
        return rig.family.encode_media(rig.parts, Media(pixels))


def told(rig: Rig, captions: Sequence[str], pictures: Sequence[Any], shape: Shape) -> Cond:
    return {**rig.cond(captions, shape), "control": seen(rig, pictures)}


def answer(rig: Rig, x: Tensor, cond: Cond, look: bool = True) -> Tensor:
    with torch.no_grad(), rig.parts.sight.seeing(cond) if look else nullcontext():
        return rig.family.predict(rig.parts.network, x, torch.linspace(0.3, 0.8, len(x)), cond)


def official(rig: Rig, form: str, exported: Path) -> Any:
    """The official pipeline for control pictures, with what was exported."""
    name = rig.family.control.pipeline(form)
    cls = getattr(diffusers, name)
    takes = inspect.signature(cls.__init__).parameters
    parts = {k: v for k, v in rig.official.components.items() if k in takes}
    if form == "branch":
        parts[CONTROLNET] = getattr(diffusers, rig.family.control.branch.network).from_pretrained(exported)
    if "requires_safety_checker" in takes:
        parts["requires_safety_checker"] = False
    pipe = cls(**parts)
    pipe.set_progress_bar_config(disable=True)
    if form == "lora":
        pipe.load_lora_weights(exported.parent, weight_name=exported.name)
    return pipe


def argument(rig: Rig, form: str) -> str:
    return rig.family.control.branch.argument if form == "branch" else "control_image"


def exported(adapter: Any, rig: Rig, folder: Path) -> Path:
    return rig.exported(adapter, folder)[0].path


@pytest.fixture
def mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official pipelines draw a control's latents from the posterior; we take its mean, as for all latents."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


@pytest.mark.parametrize(("name", "form"), marked(FORMS, FORMS))
def test_fresh_it_is_the_base_and_trained_it_looks(rigged: Callable[[str], Rig], name: str, form: str) -> None:
    rig = rigged(name)
    shape = rig.case.shapes[1]
    size, x = (shape.width, shape.height), rig.latent(shape, 2)
    cond = told(rig, [SHORT, LONG], [picture(0, *size), picture(1, *size)], shape)
    with torch.no_grad():
        config = dict(rig.parts.network.config)
        base = rig.family.predict(rig.parts.network, x, torch.linspace(0.3, 0.8, 2), cond)
    adapter = attached(rig, form)
    expected = {**config, "in_channels": 2 * config["in_channels"], "out_channels": config["in_channels"]}
    assert dict(rig.parts.network.config) == (expected if (name, form) == ("flux1", "lora") else config)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in adapter.parameters())
    torch.testing.assert_close(answer(rig, x, cond), base, atol=2e-5, rtol=2e-5)
    nudged(adapter)
    whole = answer(rig, x, cond)
    swapped = answer(rig, x, {**cond, "control": cond["control"].flip(0)})
    assert (whole - base).abs().max() > 1e-3
    assert (whole - swapped).abs().max() > 1e-4, "the control picture is not looked at"
    with adapter.scaled(0.0):
        torch.testing.assert_close(answer(rig, x, cond), base, atol=2e-5, rtol=2e-5)
    with adapter.disabled():
        torch.testing.assert_close(answer(rig, x, cond), base, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(answer(rig, x, cond), whole)


@pytest.mark.usefixtures("mean")
@pytest.mark.parametrize(("name", "form"), marked(OFFICIAL, OFFICIAL))
def test_call_parity(rigged: Callable[[str], Rig], tmp_path: Path, name: str, form: str) -> None:
    """Every argument that the official pipeline gives ControlNet and denoiser, at every step, is the one we give."""
    rig = rigged(name)
    shape, case = rig.case.shapes[1], rig.case
    pictures = [picture(i, shape.width, shape.height) for i in range(2)]
    raw, cond = rig.latent(shape, 2), told(rig, [SHORT, LONG], pictures, shape)
    pipe = official(rig, form, exported(nudged(attached(rig, form)), rig, tmp_path))
    branch, network = getattr(pipe, CONTROLNET, None), getattr(pipe, rig.family.denoiser)
    scale = {"controlnet_conditioning_scale": 1.0} if branch else {}
    with Recorder(network) as theirs, Recorder(branch) if branch else nullcontext() as theirs_too:
        asked = {"latents": case.pack(rig, raw), "num_inference_steps": 3, argument(rig, form): pictures}
        case.run(pipe, [SHORT, LONG], shape, **asked, **scale)
    assert len(theirs.calls) >= 3
    for i, call in enumerate(theirs.calls):
        x, t = case.seen(rig, call, shape), case.time(rig, i).expand(2)
        own = rig.parts.components.get(CONTROLNET)
        with Recorder(rig.parts.network) as ours, Recorder(own) if own else nullcontext() as ours_too, torch.no_grad():
            if form == "lora":  # of the joined latents, the first half are the noisy ones
                x = case.unpack(rig, call["hidden_states"].chunk(2, 2)[0], shape)
            with rig.parts.sight.seeing(cond):
                rig.family.predict(rig.parts.network, x, t, cond)
        if form == "lora":  # "no further arguments" is None to this pipeline, {} to the others of FLUX.1
            assert call["joint_attention_kwargs"] is None
            call["joint_attention_kwargs"] = {}
        assert_same(ours.calls[0], call, f"step {i}")
        if own is not None:
            assert_same(ours_too.calls[0], theirs_too.calls[i], f"step {i}, controlnet")


@pytest.mark.usefixtures("mean")
@pytest.mark.parametrize(("name", "form"), marked(OFFICIAL, QUICK))
def test_samples_are_those_of_the_official_pipeline(
    rigged: Callable[[str], Rig], tmp_path: Path, name: str, form: str
) -> None:
    """With guidance and half strength, from cached text: the live adapter, and the file loaded for a comparison."""
    rig = rigged(name)
    shape, case = rig.case.shapes[1], rig.case
    shown = picture(1, shape.width, shape.height)
    path = exported(nudged(attached(rig, form)), rig, tmp_path)
    request = case.request(rig, LONG, shape, 2)
    live = drawn(rig, rig.parts, request, shown, 0.5)
    plain = drawn(rig, rigged(name).parts, request, None, 1.0)
    fresh = rigged(name).parts
    if form == "branch":
        assert controlnet.attach(rig.family, fresh, path, 1.0)
        torch.testing.assert_close(drawn(rig, fresh, request, shown, 0.5), live, atol=1e-4, rtol=1e-4)
        strength = {"controlnet_conditioning_scale": 0.5}
    else:
        assert controlnet.attach(rig.family, fresh, path, 0.5)
        torch.testing.assert_close(drawn(rig, fresh, request, shown, 1.0), live, atol=1e-4, rtol=1e-4)
        strength = {"joint_attention_kwargs": {"scale": 0.5}}
    pipe = official(rig, form, path)
    asked = {"num_inference_steps": 2, "generator": generator(1), argument(rig, form): shown, **case.guided(rig)}
    with torch.no_grad():
        expected = case.output(case.run(pipe, [LONG], shape, **asked, **strength))
    wrong, changed = (live - expected).abs().max().item(), (plain - expected).abs().max().item()
    show(f"{name} {form}: differs from the official pipeline by {wrong:.1e}; control changes {changed:.1e}")
    assert changed > 1e-3
    assert wrong < 1e-4


def drawn(rig: Rig, parts: Parts, request: Any, shown: Any, strength: float) -> Tensor:
    """What `sample.draw` draws, as a tensor."""
    family = rig.family
    pipe = family.pipe(parts)
    family.prepare(pipe, request)
    arguments = {**family.sized(request), **family.call(parts, request), "output_type": "pt"}
    looking = parts.sight.drawing(shown, strength) if parts.sight else nullcontext({})
    with torch.no_grad(), looking as more:
        return rig.case.output(pipe(**{**arguments, **more}, generator=generator(request.seed)))


@pytest.mark.parametrize(("name", "form"), marked(FORMS, FORMS))
def test_save_load_and_go_on(rigged: Callable[[str], Rig], tmp_path: Path, name: str, form: str) -> None:
    """Export, then a fresh adapter that starts from it: the same answers, bit for bit. Checkpoints likewise."""
    rig, again, third = (rigged(name) for _ in range(3))
    shape = rig.case.shapes[1]
    x = rig.latent(shape, 2)
    cond = told(rig, [SHORT, LONG], [picture(i, shape.width, shape.height) for i in (0, 1)], shape)
    adapter = nudged(attached(rig, form))
    path = exported(adapter, rig, tmp_path)
    attached(again, form, start=str(path if path.is_dir() else path.parent))
    assert answer(again, x, cond).equal(answer(rig, x, cond))
    restored = attached(third, form)
    restored.load_state_dict(adapter.state_dict())
    assert answer(third, x, cond).equal(answer(rig, x, cond))


# -- training ----------------------------------------------------------------------------------------------------------

# What makes this proof possible on a tiny random model, and fails without it, whatever is trained:
# - The base has seen both targets with the one caption, as a real base has seen all that its ControlNet leads to. A
#   base that knows one alone must be turned against what it knows, which few steps do not do.
# - The control pictures are apart, and so are their latents: a random autoencoder's are up to 27 times smaller than
#   those of a published one, which its scaling factor brings to a spread of 1.
# - It is trained most where there is most noise, since there it is decided which of the two is drawn.
# - UNets see how strong the noise is. Their last norm divides each group of channels by its spread. Of a group with n
#   independent numbers a share of 1 / 2n of the noise is lost so, at every t: 1 / 80,000 in a published UNet (10
#   channels of 64 x 64), but 1 / 32 in our other tests' (2 channels of 4 x 4, which say the same twice). Of the noise
#   that the network answers with, the picture is signal^2 / sigma^2 = 0.005 at t = 0.99, far below that; an error there
#   is multiplied by sigma / signal = 15 in the first step of the sampler. So these UNets have one group and twice the
#   width: the error at t = 0.99 falls from 0.036 to 0.001.


@dataclass(frozen=True)
class Lesson:
    """How long base and control are trained, how fast, and with which distributions of t (None: the family's)."""

    base: int
    control: int
    lr: float
    base_times: Beta | None = None
    control_times: Beta = field(default_factory=lambda: Beta(alpha=2.0, beta=1.0))


STEPS = 50
"""The pipelines' own default. Their schedulers leave out the noisiest steps: with 12 they begin at t = 0.914 with pure
noise, where training shows a ninth of the picture; with 50 at t = 0.981, where it is a thirteenth."""
UNETS = ("sd1", "sd2", "sd2-base", "sdxl")
LENGTHS = {"pixart_sigma": (2, 4), "sd3": (3, 3), "sd3-medium-dual": (3, 3), "hidream": (2, 2)}
"""Times `overfit_steps`: of the base, of the control; (1, 2) where nothing stands."""
SHORT_ENOUGH = [("flux1", "branch"), ("flux1", "lora"), ("auraflow", "lora")]
PAIRS = [
    *marked(SHORT_ENOUGH, [("flux1", "lora")]),
    *(
        pytest.param(n, f, marks=pytest.mark.slow, id=f"{n}-{f}")
        for n, f in FORMS
        if n != "flux1-schnell" and n not in UNETS and (n, f) not in SHORT_ENOUGH
    ),
]


def lesson(rig: Rig) -> Lesson:
    """What is enough for a case."""
    case = rig.case
    if case.name in UNETS:
        # with velocity the noise is told from the picture at low t, and what is not learned there stays in the sample
        times = Beta(alpha=2.0, beta=1.0) if rig.objective.predicts == "epsilon" else None
        return Lesson(700, 700, 3e-3, times, Beta(alpha=5.0, beta=1.0))
    of_base, of_control = LENGTHS.get(case.name, (1, 2))
    noisy = Beta(alpha=2.0 if rig.objective.flow else 3.0, beta=1.0)
    return Lesson(of_base * case.overfit_steps, of_control * case.overfit_steps, case.overfit_lr, None, noisy)


def pair_of_pictures(shape: Shape) -> list[Image.Image]:
    """A control picture of full contrast and its negative."""
    one = ImageOps.autocontrast(picture(0, shape.width, shape.height))
    return [one, ImageOps.invert(one)]


def spread(rig: Rig, pictures: Sequence[Any]) -> None:
    """Scale the autoencoder's latents of these pictures to a spread of 1, for us and for the official pipeline."""
    if rig.family.control.sees == "latents":
        now = seen(rig, pictures).std().item()
        for vae in (rig.parts["vae"], rig.official.vae):
            vae.register_to_config(scaling_factor=vae.config.scaling_factor / now)


def seeing(rig: Rig, folder: Path, seed: int) -> Rig:
    """The same models with a random UNet of twice the width, whose norms take all channels together."""
    shutil.copytree(rig.folder, folder)
    config = dict(diffusers.UNet2DConditionModel.load_config(folder / "unet"))
    wider = {"norm_num_groups": 1, "block_out_channels": [2 * c for c in config["block_out_channels"]]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        diffusers.UNet2DConditionModel.from_config({**config, **wider}).save_pretrained(folder / "unet")
    return Rig(rig.case, folder)


def targets(rig: Rig, shape: Shape) -> list[Tensor]:
    """Two latents that are told apart by their sign."""
    z = rig.case.learnable(rig, shape)
    return [z, -z]


def fit(rig: Rig, adapter: Any, batch: Batch, spec: TrainSpec, times: Any) -> None:
    """The engine's own trainer on one batch."""
    trainer = rig.trainer(adapter, spec)
    trainer.timesteps = times or trainer.timesteps
    rig.parts.network.train()
    for _ in range(spec.steps):
        trainer.step([batch])
    rig.parts.network.eval()


def spec_of(steps: int, lr: float, seed: int) -> TrainSpec:
    """As in the proof of a family without control."""
    options = {"betas": [0.9, 0.99], "weight_decay": 0}
    return TrainSpec(steps=steps, lr=lr, seed=seed, schedule="cosine", precision="fp32", optimizer_options=options)


def pairs(rig: Rig, pictures: Sequence[Any]) -> Batch:
    """Both targets with the one caption, each with its control picture."""
    case, shape = rig.case, rig.case.overfit_shape
    half = case.overfit_batch // 2
    count = 2 * half
    spread(rig, pictures)
    cond = told(rig, [SHORT] * count, [pictures[0]] * half + [pictures[1]] * half, shape)
    latents = torch.cat([z.expand(half, *z.shape[1:]) for z in targets(rig, shape)])
    return Batch(latents, cond, ("pair",) * count, tuple(range(count)), count)


def know(rig: Rig, batch: Batch, seed: int = 0) -> None:
    """Teach the base both pictures, without control."""
    plan, blind = lesson(rig), replace(batch, cond={k: v for k, v in batch.cond.items() if k != "control"})
    base = adapters.build(FullSpec(), rig.family, rig.parts)
    fit(rig, base, blind, spec_of(plan.base, plan.lr, seed), plan.base_times)
    getattr(rig.official, rig.family.denoiser).load_state_dict(rig.parts.network.state_dict())


def taught(rig: Rig, form: str, batch: Batch, steps: int, seed: int = 0) -> Any:
    """An adapter that was shown this batch."""
    plan, adapter = lesson(rig), attached(rig, form)
    fit(rig, adapter, batch, spec_of(steps, plan.lr, seed), plan.control_times)
    return adapter


def errors(rig: Rig, batch: Batch, t: float) -> tuple[float, float]:
    """The loss at t with each item's own control picture, and with the other's."""
    noise = torch.randn(batch.latents.shape, generator=generator(5))
    noised = rig.objective.noised(batch.latents, noise, torch.full((len(noise),), t))
    found = []
    for control in (batch.cond["control"], batch.cond["control"].flip(0)):
        cond = {**batch.cond, "control": control}
        with torch.no_grad(), rig.parts.sight.seeing(cond):
            out = rig.family.predict(rig.parts.network, noised.x, noised.t, cond)
        found.append((out - noised.target).square().mean().item())
    return found[0], found[1]


@contextmanager
def shown_to(rig: Rig, pipe: Any, form: str, shown: Any) -> Iterator[Rig]:
    """The rig with a pipeline that is shown a control picture."""
    kept = rig.official, rig.case.settings
    rig.official = pipe
    try:
        if rig.family.control.pipeline(form):
            rig.case.settings = {**kept[1], argument(rig, form): shown}
            yield rig
        else:
            with rig.parts.sight.drawing(shown, 1.0):
                yield rig
    finally:
        rig.official, rig.case.settings = kept


def drawer(rig: Rig, form: str, adapter: Any, folder: Path) -> Any:
    """The official pipeline with what was exported, or ours for a family that has none."""
    path = exported(adapter, rig, folder)
    if rig.family.control.pipeline(form):
        return official(rig, form, path)
    setattr(rig.official, rig.family.denoiser, rig.parts.network)
    return rig.official


def reached(rig: Rig, noise: int) -> tuple[Tensor, list[float]]:
    """The latent that the official pipeline draws from the noise of this seed, and its cosines with both targets."""
    rig.case.noise = noise  # the case is this rig's own copy
    latent = rig.case.sampled(rig, rig.case.overfit_shape)
    return latent, [cosine(latent, z) for z in targets(rig, rig.case.overfit_shape)]


def asked_for(
    rig: Rig, pipe: Any, form: str, pictures: Sequence[Any], noise: int = 77
) -> list[tuple[Tensor, list[float]]]:
    """For each control picture, the latent that is drawn and its cosines with both targets."""
    found = []
    for shown in pictures:
        with shown_to(rig, pipe, form, shown):
            found.append(reached(rig, noise))
    said = "  ".join(f"control {i}: {own[0]:+.3f} / {own[1]:+.3f}" for i, (_, own) in enumerate(found))
    show(f"{rig.case.name} {form}, noise {noise}: cosine with the first target / with the second: {said}")
    return found


def obeys(rig: Rig, form: str, batch: Batch) -> None:
    """The wrong control costs, where it is decided which of the two is drawn."""
    for t in (0.6, 0.8):
        right, wrong = errors(rig, batch, t)
        show(f"{rig.case.name} {form}: loss at t = {t} with its control {right:.4f}, with the other {wrong:.4f}")
        assert wrong > 4 * right


@pytest.mark.usefixtures("mean")
@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_two_pairs_of_one_caption(rigged: Callable[[str], Rig], tmp_path: Path, name: str, form: str) -> None:
    """A base that knows two pictures by one caption learns a control for each: the control then decides which of the
    two is drawn, through the official pipeline and the exported file where there is one. The wrong control costs."""
    rig = rigged(name)
    pictures = pair_of_pictures(rig.case.overfit_shape)
    batch = pairs(rig, pictures)
    know(rig, batch)
    adapter = taught(rig, form, batch, lesson(rig).control)
    obeys(rig, form, batch)
    for i, (_, own) in enumerate(asked_for(rig, drawer(rig, form, adapter, tmp_path), form, pictures)):
        assert own[i] >= 0.9
        assert own[1 - i] < -0.5


@pytest.mark.slow
@pytest.mark.usefixtures("mean")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", UNETS)
def test_unets_learn_two_pairs(rigged: Callable[[str], Rig], tmp_path: Path, name: str, seed: int) -> None:
    """With the answer that the model's scheduler states: noise (sd1, sd2-base, sdxl) or velocity (sd2).

    Two pairs as above, drawn from three noises: the base alone draws one of the pictures from each, and the control
    picture must say which, also against it.
    """
    rig = seeing(rigged(name), tmp_path / "model", seed)
    rig.case.sampling_steps = STEPS
    assert rig.objective.predicts == ("velocity" if name == "sd2" else "epsilon")
    pictures, noises = pair_of_pictures(rig.case.overfit_shape), (77, 78, 79)
    batch = pairs(rig, pictures)
    know(rig, batch, seed)
    alone = [reached(rig, noise)[1][0] for noise in noises]
    show(f"{name}, the base alone: cosine with the first {', '.join(f'{c:+.3f}' for c in alone)}")
    adapter = taught(rig, "branch", batch, lesson(rig).control, seed)
    obeys(rig, "branch", batch)
    pipe = drawer(rig, "branch", adapter, tmp_path / "two")
    for noise in noises:
        for i, (_, own) in enumerate(asked_for(rig, pipe, "branch", pictures, noise)):
            assert own[i] >= 0.9
            assert own[1 - i] < -0.5
