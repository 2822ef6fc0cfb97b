"""From a prepared recipe to a trainer: the only module that knows families, data, adapters and techniques together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from . import adapters, assistants, device, export, optimizers, provenance, quantise
from .adapter import Adapter, Layered, Writes, Written
from .adapters import start
from .control import CONTROLNET
from .data import cache, fill, loader, tensor
from .data.buckets import frame
from .errors import UserError, stop_on_errors
from .extension import Context, Stack
from .formats.layers import Layer
from .home import cache_folder
from .loop import Trainer
from .prepare import Prepared
from .progress import progress
from .recipe import LoraSpec, LycorisSpec, Recipe
from .seeds import mix
from .types import Cond, Parts, on_device
from .validate import Validator

if TYPE_CHECKING:
    from .adapters.text import TextEncoders, WithText

Say = Callable[..., Any]
HELD = 4
"""How many items the validation loss looks at."""


@dataclass
class Job:
    """Everything a run needs, loaded."""

    trainer: Trainer
    loader: loader.Loader
    validator: Validator | None
    assistants: assistants.Assistants


def build(ready: Prepared, say: Say) -> Job:
    """Fill the caches, load the denoiser, attach what trains. Each phase is told to `say`."""
    stop_on_errors(ready.problems)
    if ready.recipe.train.threads:
        torch.set_num_threads(ready.recipe.train.threads)
    dtype = device.storage(ready.recipe, ready.device)
    store, keys = cache.Cache(cache_folder()), keys_of(ready, dtype)
    fill_media(ready, store, keys, dtype, say)
    _, told = fill_text(ready, store, keys, dtype, say)
    say("phase", name="load", done=0, of=0)
    trainer = load_trainer(ready, dtype, say)
    train = ready.recipe.train
    batches = loader.Loader(
        ready.sampler, store, keys, ready.family, train.seed, train.caption_dropout, train.workers, not tells_all(ready)
    )
    if trainer.tell is None and ready.told_anew:
        spoken = _speaking(ready, dtype)
        trainer.tell, trainer.encoders = spoken.tell, spoken.encoders
    below = assistants.Assistants(
        ready.recipe.assistants, ready.family, ready.source, trainer.parts.network, trainer.encoders
    )
    return Job(trainer, batches, _validator(ready, trainer, batches, told, dtype, below), below)


def tells_all(ready: Prepared) -> bool:
    """Whether captions are encoded anew in every step and nothing of them is read from the cache."""
    return ready.told_anew and ready.family.retells_all


def load_trainer(ready: Prepared, dtype: torch.dtype, say: Say = lambda *_, **__: None) -> Trainer:
    """The denoiser, quantised if asked for, with its adapter, techniques and optimiser, on the device."""
    recipe, family = ready.recipe, ready.family
    precision = "no" if recipe.train.precision == "fp32" else recipe.train.precision
    AcceleratorState._reset_state()  # accelerate keeps the precision of the first run of a process
    accelerator = Accelerator(mixed_precision=precision, cpu=ready.device.kind == "cpu")
    parts = family.load(ready.source, (family.denoiser,), dtype)
    torch.manual_seed(mix(recipe.train.seed, "adapter"))
    place = quantise.Place(recipe.memory.quantise, dtype, accelerator.device)
    copied = getattr(recipe.adapter, "form", None) == "branch"  # from plain weights, so that they are rounded behind it
    with quantise.base(family, parts, place, recipe.memory.quantise_skip, say, late=copied):
        adapter = adapters.build(recipe.adapter, family, parts)
        adapters.begin(adapter, recipe.adapter, family, ready.source)
    inner, tell, heard, groups = adapter, None, {}, []
    if getattr(recipe.adapter, "text", None) is not None:
        adapter = _with_text(ready, adapter, dtype)
        tell, heard = adapter.text.tell, adapter.text.encoders
        groups = _text_groups(recipe, adapter.text.parameters(), adapter.text.stop)
    for component in parts.components.values():  # the denoiser, and a ControlNet beside it
        if isinstance(component, torch.nn.Module):
            component.to(accelerator.device).train()
    network = parts.network
    family.ready(network)
    _speed_and_memory(ready, network)
    if ready.recipe.memory.checkpointing and CONTROLNET in parts.components:
        parts[CONTROLNET].enable_gradient_checkpointing()
    stack = Stack(ready.extensions)
    stack.attach(Context(family, network, adapter, recipe.train.steps))
    scheduler_config = ready.source.config("scheduler")

    def shift(latents: Tensor, cond: Cond) -> float:
        if recipe.train.shift != "auto":
            return float(recipe.train.shift)
        return family.shift(latents, cond, scheduler_config) if ready.objective.flow else 1.0

    assert recipe.train.timesteps is not None
    optimizer, scheduler = optimizers.build(recipe.train, inner.parameters() + stack.parameters(), groups)
    return Trainer(
        family, parts, adapter, ready.objective, recipe.train.timesteps, shift, stack,
        accelerator.prepare(optimizer), scheduler, accelerator, recipe.train, family.reach(ready.source), tell=tell,
        encoders=heard,
    )  # fmt: skip


def _retelling(ready: Prepared, place: quantise.Place) -> Parts:
    """What telling captions anew needs, on the device."""
    wanted = ready.family.retelling_parts(ready.source)
    return quantise.encoders(ready.family, ready.source, wanted, place, lambda *_, **__: None)


def _speaking(ready: Prepared, dtype: torch.dtype) -> TextEncoders:
    """The text encoders as the cache was filled with them, to be asked again with something over them."""
    place = quantise.Place(ready.recipe.memory.quantise_text, dtype, ready.device.torch)
    return adapters.speaking(ready.family, _retelling(ready, place))


def _with_text(ready: Prepared, adapter: Adapter, dtype: torch.dtype) -> WithText:
    """The adapter with the one of the text encoders, which come onto the device."""
    recipe, family = ready.recipe, ready.family
    assert isinstance(recipe.adapter, LoraSpec | LycorisSpec)
    assert recipe.adapter.text is not None
    encoders = _retelling(ready, quantise.Place("none", dtype, ready.device.torch))  # what trains is never quantised
    torch.manual_seed(mix(recipe.train.seed, "text adapter"))
    stop = max(1, round((recipe.adapter.text.until or 1.0) * recipe.train.steps))
    both = adapters.with_text(adapter, recipe.adapter, family, encoders, stop)
    adapters.begin(both, recipe.adapter, family, ready.source)
    if recipe.memory.checkpointing:
        both.text.checkpoint()
    return both


def _text_groups(recipe: Recipe, parameters: list[torch.nn.Parameter], stop: int) -> list[optimizers.Group]:
    """The text encoders' own rate; nothing where they are held as they are."""
    assert isinstance(recipe.adapter, LoraSpec | LycorisSpec)
    assert recipe.adapter.text is not None
    if not parameters:
        return []
    assert recipe.adapter.text.lr is not None
    return [optimizers.Group("text", parameters, recipe.adapter.text.lr, stop)]


def _speed_and_memory(ready: Prepared, network: Any) -> None:
    memory = ready.recipe.memory
    if memory.checkpointing:
        network.enable_gradient_checkpointing()
    if memory.attention:
        try:
            network.set_attention_backend(memory.attention)
        except (ValueError, RuntimeError, ImportError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(
                f"memory.attention is {memory.attention!r}: {first} Choose another, or leave it empty."
            ) from None
    elif ready.device.kind == "cuda":
        # cuDNN's attention gave a random FLUX in bf16 NaN gradients on an H200 (torch 2.11), the others did not
        torch.backends.cuda.enable_cudnn_sdp(False)
    if memory.compile:
        shapes = {(b.width, b.height, b.frames, b.samples) for b in ready.plan.buckets}
        try:
            # few shapes are compiled exactly, which runs faster; many would be compiled again and again
            network.compile_repeated_blocks(dynamic=False if len(shapes) <= 2 else None)
        except ValueError:
            raise UserError(
                f"memory.compile: {ready.family.name} has no repeated blocks to compile; turn it off."
            ) from None


def keys_of(ready: Prepared, dtype: torch.dtype) -> fill.Keys:
    """The cache keys of the plan: they depend on the encoders' bytes and precision."""
    family, source, kind = ready.family, ready.source, ready.device.kind
    text = [p for p in family.text_parts if source.has(p)]
    model = f"{source.pipeline} {sorted(source.flags.items())} {dtype} {kind}"
    rounded = ready.recipe.memory.quantise_text
    told = f"{source.fingerprint(*text)} {model}{'' if rounded == 'none' else f' {rounded}'}"
    return fill.Keys(
        ready.plan,
        family,
        f"{family.fingerprint(source)} {model}",
        told,
        ready.geometry.sample_rate,
    )


def fill_media(ready: Prepared, store: cache.Cache, keys: fill.Keys, dtype: torch.dtype, say: Say) -> int:
    """Encode everything that the cache lacks; returns the number of entries of the plan.

    The encoder is loaded only if one is missing.
    """
    wanted = keys.all()
    if store.missing(wanted):
        place = quantise.Place("none", dtype, ready.device.torch)
        encoder = _encoder(ready, ready.family.media_parts, place, say)
        fill.fill_media(store, keys, encoder, progress(say, PHASES[ready.family.modality]))
    store.used(wanted)
    return len(set(wanted))


PHASES = {"image": "cache pictures", "video": "cache videos", "audio": "cache sound"}


def fill_text(
    ready: Prepared, store: cache.Cache, keys: fill.Keys, dtype: torch.dtype, say: Say
) -> tuple[int, list[fill.Told]]:
    """Encode every caption and prompt that the cache lacks; returns the number of texts, and what samples are told.

    The last of those is the negative prompt. Nothing is encoded where all of it is told anew in every step.
    """
    samples = told_by_samples(ready, keys)
    if tells_all(ready):
        return 0, samples
    told = fill.everything_told(keys, samples)
    if store.missing(told):
        place = quantise.Place(ready.recipe.memory.quantise_text, dtype, ready.device.torch)
        encoder = _encoder(ready, ready.family.text_parts, place, say)
        fill.fill_text(store, told, encoder, progress(say, "cache text"))
    store.used(list(told))
    return len(told), samples


def told_by_samples(ready: Prepared, keys: fill.Keys) -> list[fill.Told]:
    """What the text encoders are told for each validation prompt, then for the negative prompt."""
    spec, family = ready.recipe.validation, ready.family
    if spec is None or not spec.prompts:
        return []
    shown = sample_pictures(ready)
    seconds = (spec.seconds or 0.0) if "seconds" in family.reads else 0.0
    told = []
    for i, prompt in enumerate([*spec.prompts, spec.negative]):
        lyrics = spec.lyrics[i] if "lyrics" in family.reads and i < len(spec.lyrics) else ""
        pictures = shown[i % len(spec.prompts)] if shown and "references" in family.reads else ()
        told.append(fill.Told(prompt, tuple(_digest(p) for p in pictures), lyrics, seconds, pictures=pictures))
    return told


def _digest(picture: Any) -> str:
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def sample_pictures(ready: Prepared) -> list[tuple[Any, ...]]:
    """The pictures (PIL) that each validation sample starts from: those of the recipe, or of the first items."""
    spec, made = ready.recipe.validation, ready.plan
    if spec is None or ready.family.task not in ("edit", "image_to_video"):
        return []
    if spec.references:
        given = [(tensor.open_picture(Path(path)),) for path in spec.references]
        return given * len(spec.prompts) if len(given) == 1 else given
    items = [made[int(i)] for i in (ready.held if len(ready.held) else ready.trained)[: len(spec.prompts)]]
    return [tensor.starts(items[i % len(items)]) for i in range(len(spec.prompts))] if items else []


def sample_controls(ready: Prepared) -> list[Any]:
    """The control picture (PIL, of the samples' size) of each validation sample: the recipe's, or the first items'."""
    spec, made = ready.recipe.validation, ready.plan
    if spec is None or spec.size is None or ready.recipe.adapter.kind != "controlnet":
        return []
    if spec.controls:
        shown: list[Any] = [tensor.open_picture(Path(path)) for path in spec.controls]
    else:
        items = [made[int(i)] for i in (ready.held if len(ready.held) else ready.trained)[: len(spec.prompts)]]
        shown = [tensor.control(planned) for planned in items]
    fitted = [tensor.fit(picture, frame(picture.size, spec.size)) for picture in shown]
    return [fitted[i % len(fitted)] for i in range(len(spec.prompts))]


def _encoder(ready: Prepared, names: Sequence[str], place: quantise.Place, say: Say) -> fill.Encoder:
    """Loaded and on the device; freed with its last reference, before the denoiser is loaded."""
    parts = quantise.encoders(ready.family, ready.source, names, place, say)
    return fill.Encoder(ready.family, parts, ready.geometry, ready.device.torch)


def _validator(
    ready: Prepared,
    trainer: Trainer,
    batches: loader.Loader,
    told: list[fill.Told],
    dtype: torch.dtype,
    below: assistants.Assistants,
) -> Validator | None:
    """Held items, or a few of the training ones spread over the data, and the prompts' conditions."""
    if (spec := ready.recipe.validation) is None:
        return None
    where, pool = trainer.accelerator.device, ready.held if len(ready.held) else ready.trained
    count = min(HELD, len(pool))
    items = [batches.fixed([int(pool[i * len(pool) // count])]).to(where) for i in range(count)]
    conds: list[Cond] = [
        on_device(batches.cache.get(batches.keys.text(t)), where) if batches.text else {} for t in told
    ]
    assert spec.guidance is not None
    negative = conds.pop() if conds else None
    if not ready.family.wants_negative(ready.source, spec.guidance):
        negative = None
    fps = ready.plan.fps

    def read(path: Path) -> list[Layer]:
        return start.layers_of(start.find(str(path)), ready.family, ready.source)

    controls, strength = sample_controls(ready), getattr(ready.recipe.adapter, "strength", 1.0)
    return Validator(
        trainer, spec, ready.source, items, conds, negative, dtype, sample_pictures(ready), fps, below.sampling, read,
        controls, strength, lambda: _speaking(ready, dtype),
    )  # fmt: skip


def exported(job: Job, ready: Prepared, folder: Path, say: Say) -> list[Written]:
    """Write the result below `folder/export`; what EMA averaged is what is written."""
    trainer = job.trainer
    with optimizers.evaluation(trainer.optimizer), trainer.stack.sampling():
        facts = provenance.known(folder, ready.recipe, ready.family)
        return write(trainer, ready, folder / "export", facts, say)


def write(trainer: Trainer, ready: Prepared, folder: Path, facts: dict[str, str], say: Say) -> list[Written]:
    """Write what trains below `folder`, in every format that the recipe asks for; the main file first."""
    save, adapter = ready.recipe.save, trainer.adapter
    if isinstance(adapter, Writes):
        folder.mkdir(parents=True, exist_ok=True)
        return adapter.export(folder, ready.source, type(trainer.family.pipe(trainer.parts)))
    assert isinstance(adapter, Layered)
    wish = export.Wish(
        ready.recipe.name, tuple(save.formats), save.precision, save.metadata, facts,
        lambda text: say("note", where="save.formats", text=text),
    )  # fmt: skip
    return export.adapter(adapter, trainer.family, ready.source, trainer.parts, folder, wish)
