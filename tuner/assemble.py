"""From a recipe to a trainer: the only module that knows families, data, adapters and techniques together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from . import adapters, device, extensions, families, optimizers
from .data import buckets, cache, index, loader, sampler
from .device import Device
from .errors import Problem, UserError, stop_on_errors
from .extension import Context, Extension, Stack
from .family import Family, Geometry
from .home import cache_folder
from .loop import Trainer
from .objective import Objective
from .recipe import Recipe
from .seeds import mix
from .source import Source
from .types import Cond
from .validate import Validator

Say = Callable[..., Any]
HELD = 4
"""How many pictures the validation loss looks at."""


@dataclass
class Prepared:
    """A recipe that was understood and planned; no weights are loaded yet."""

    recipe: Recipe
    family: Family
    source: Source
    objective: Objective
    geometry: Geometry
    device: Device
    extensions: list[Extension]
    index: index.Index
    planned: list[buckets.Planned] = field(default_factory=list)
    held: list[buckets.Planned] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def sampler(self) -> sampler.Sampler:
        """The order of the training items."""
        train = self.recipe.train
        return sampler.Sampler(self.planned, train.batch, train.accumulate, train.seed)


def prepare(recipe: Recipe) -> Prepared:
    """Understand a recipe and plan its data. Raises `UserError` for what makes planning impossible.

    Everything else that is wrong or worth knowing is in `problems`.
    """
    family = families.build(recipe.family, recipe.options, recipe.task)
    source = Source(recipe.source, family.sources)
    family.accept(source)
    where = device.pick()
    device.check_precision(recipe, where)
    recipe = resolve(recipe, family, where)
    built = [extensions.build(spec, i) for i, spec in enumerate(recipe.extensions)]
    Stack(built)
    objective = family.objective(source, recipe.train.snr_gamma)
    geometry = family.geometry(source)
    found = index.scan(recipe.data, geometry.multiple, store=cache_folder())
    ready = Prepared(recipe, family, source, objective, geometry, where, built, found)
    _plan(ready)
    ready.problems += _settings(ready)
    return ready


def resolve(recipe: Recipe, family: Family, where: Device) -> Recipe:
    """The recipe with every default of its family and optimiser written out: what the run folder keeps.

    So does the number of CPU threads, on which the last digits of a loss depend: a resumed run takes the same.
    """
    train = recipe.train
    resolutions = recipe.media.resolutions or [family.resolution]
    change: dict[str, Any] = {
        "options": family.options.model_dump(mode="json"),
        "media": recipe.media.model_copy(update={"resolutions": resolutions}),
        "train": train.model_copy(
            update={
                "lr": train.lr or optimizers.default_lr(train.optimizer),
                "timesteps": train.timesteps or family.timesteps,
                "threads": train.threads or (torch.get_num_threads() if where.kind == "cpu" else None),
            }
        ),
    }
    if recipe.adapter.kind == "lora" and recipe.adapter.alpha is None:
        change["adapter"] = recipe.adapter.model_copy(update={"alpha": float(recipe.adapter.rank)})
    if (spec := recipe.validation) is not None:
        guidance = family.guidance if spec.guidance is None else spec.guidance
        size = spec.size or (resolutions[0], resolutions[0])
        change["validation"] = spec.model_copy(update={"guidance": guidance, "size": size})
    return recipe.model_copy(update=change)


def _plan(ready: Prepared) -> None:
    ready.problems += ready.index.problems
    resolutions = ready.recipe.media.resolutions or []
    roles = {role: [i for i in ready.index.items if i.role == role] for role in ("train", "validation")}
    ready.planned, notes = buckets.plan(roles["train"], resolutions, ready.geometry)
    ready.held, more = buckets.plan(roles["validation"], resolutions[:1], ready.geometry)
    ready.problems += [*notes, *more]
    if not ready.planned and not any(p.level == "error" for p in ready.problems):
        ready.problems.append(Problem("error", "data", "No data set has role=train; give at least one for training."))
    tokenizers = {p: ready.source.load(p, torch.float32) for p in ready.family.text_parts if p.startswith("tokenizer")}
    ready.problems += index.long_captions(ready.index.items, ready.family, tokenizers)


def _settings(ready: Prepared) -> list[Problem]:
    """Settings that contradict each other or do nothing here."""
    recipe, found = ready.recipe, list(optimizers.problems(ready.recipe.train))
    if recipe.train.shift != "auto" and not ready.objective.flow:
        text = f"train.shift has no meaning for {ready.family.name}, which is no flow model; remove it."
        found.append(Problem("error", "train.shift", text, {"train.shift": "auto"}))
    found += [*_target_problems(ready), *_size_problems(ready)]
    for i, e in enumerate(ready.extensions):
        if reason := e.refuses(ready.family, recipe):
            found.append(Problem("error", f"extensions.{i}", f"{e.kind}: {reason}"))
    return found


def _target_problems(ready: Prepared) -> Iterator[Problem]:
    targets, presets = getattr(ready.recipe.adapter, "targets", []), ready.family.targets
    if isinstance(targets, str) and targets not in presets:
        text = f"adapter.targets is {targets!r}; {ready.family.name} has the presets {', '.join(presets)}; choose one."
        yield Problem("error", "adapter.targets", text, {"adapter.targets": "default"})


def _size_problems(ready: Prepared) -> Iterator[Problem]:
    spec, multiple = ready.recipe.validation, ready.geometry.multiple
    if spec is not None and spec.size is not None and any(edge % multiple or edge < multiple for edge in spec.size):
        text = f"validate.size is {list(spec.size)}; both must be multiples of {multiple}."
        rounded = [max(1, round(edge / multiple)) * multiple for edge in spec.size]
        yield Problem("error", "validate.size", text, {"validate.size": rounded})


def report(ready: Prepared) -> dict[str, Any]:
    """The plan as plain values: what `tuner check` prints and the app shows."""
    sizes: dict[tuple[int, int], int] = {}
    for planned in ready.planned:
        sizes[planned.framing.size] = sizes.get(planned.framing.size, 0) + 1
    per_epoch = ready.sampler.steps_per_epoch if ready.planned else 0
    return {
        "ok": not any(p.level == "error" for p in ready.problems),
        "problems": [p.as_dict() for p in ready.problems],
        "plan": {
            "items": len({p.item.path for p in ready.planned}) + len(ready.held),
            "buckets": [{"width": w, "height": h, "items": n} for (w, h), n in sorted(sizes.items())],
            "steps_per_epoch": per_epoch,
            "epochs": round(ready.recipe.train.steps / per_epoch, 2) if per_epoch else 0,
        },
        "device": {"kind": ready.device.kind, "name": ready.device.name, "reason": ready.device.reason},
    }


@dataclass
class Job:
    """Everything a run needs, loaded."""

    trainer: Trainer
    loader: loader.Loader
    validator: Validator | None


def build(ready: Prepared, say: Say) -> Job:
    """Fill the caches, load the denoiser, attach what trains. Each phase is told to `say`."""
    stop_on_errors(ready.problems)
    if ready.recipe.train.threads:
        torch.set_num_threads(ready.recipe.train.threads)
    dtype = device.storage(ready.recipe, ready.device)
    store = cache.Cache(cache_folder())
    keys = loader.Keys(fill_media(ready, store, dtype, say), fill_text(ready, store, dtype, say))
    say("phase", name="load", done=0, of=0)
    trainer = load_trainer(ready, dtype)
    train = ready.recipe.train
    batches = loader.Loader(
        ready.sampler, [*ready.planned, *ready.held], store, keys, ready.family, train.seed, train.caption_dropout
    )
    return Job(trainer, batches, _validator(ready, trainer, batches, dtype))


def load_trainer(ready: Prepared, dtype: torch.dtype) -> Trainer:
    """The denoiser with its adapter, techniques and optimiser, on the device."""
    recipe, family = ready.recipe, ready.family
    precision = "no" if recipe.train.precision == "fp32" else recipe.train.precision
    AcceleratorState._reset_state()  # accelerate keeps the precision of the first run of a process
    accelerator = Accelerator(mixed_precision=precision, cpu=ready.device.kind == "cpu")
    parts = family.load(ready.source, (family.denoiser,), dtype)
    torch.manual_seed(mix(recipe.train.seed, "adapter"))
    adapter = adapters.build(recipe.adapter, family, parts)
    network = parts.network.to(accelerator.device)
    network.train()
    family.ready(network)
    _speed_and_memory(ready, network)
    stack = Stack(ready.extensions)
    stack.attach(Context(family, network, adapter, recipe.train.steps))
    scheduler_config = ready.source.config("scheduler")

    def shift(latents: Tensor, cond: Cond) -> float:
        if recipe.train.shift != "auto":
            return float(recipe.train.shift)
        return family.shift(latents, cond, scheduler_config) if ready.objective.flow else 1.0

    assert recipe.train.timesteps is not None
    optimizer, scheduler = optimizers.build(recipe.train, adapter.parameters() + stack.parameters())
    return Trainer(
        family, parts, adapter, ready.objective, recipe.train.timesteps, shift, stack,
        accelerator.prepare(optimizer), scheduler, accelerator, recipe.train, family.reach(ready.source),
    )  # fmt: skip


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
    if memory.compile:
        shapes = {planned.framing.size for planned in ready.planned}
        try:
            # few shapes are compiled exactly, which runs faster; many would be compiled again and again
            network.compile_repeated_blocks(dynamic=False if len(shapes) <= 2 else None)
        except ValueError:
            raise UserError(
                f"memory.compile: {ready.family.name} has no repeated blocks to compile; turn it off."
            ) from None


def fill_media(ready: Prepared, store: cache.Cache, dtype: torch.dtype, say: Say) -> list[str]:
    """Encode every picture that the cache lacks, and return the keys of all plans, held ones last.

    The encoder is loaded only if one is missing.
    """
    family, planned = ready.family, [*ready.planned, *ready.held]
    fingerprint = f"{family.fingerprint(ready.source)} {dtype} {ready.device.kind}"
    keys = cache.media_keys(planned, family, fingerprint)
    if store.missing(keys):
        encoder = _encoder(ready, family.media_parts, dtype, fingerprint)
        cache.fill_media(store, planned, encoder, _progress(say, "cache pictures"))
    return keys


def fill_text(ready: Prepared, store: cache.Cache, dtype: torch.dtype, say: Say) -> dict[str, str]:
    """Encode every caption and prompt that the cache lacks, and return caption → key."""
    family, spec = ready.family, ready.recipe.validation
    captions = {i.caption for i in ready.index.items} | {""}
    if spec is not None:
        captions |= {*spec.prompts, spec.negative}
    present = [p for p in family.text_parts if ready.source.has(p)]
    fingerprint = (
        f"{ready.source.fingerprint(*present)} {sorted(ready.source.flags.items())} {dtype} {ready.device.kind}"
    )
    keys = cache.text_keys(sorted(captions), family, fingerprint)
    if store.missing(keys.values()):
        encoder = _encoder(ready, family.text_parts, dtype, fingerprint)
        cache.fill_text(store, sorted(captions), encoder, _progress(say, "cache text"))
    return keys


def _encoder(ready: Prepared, names: Sequence[str], dtype: torch.dtype, fingerprint: str) -> cache.Encoder:
    """Loaded and on the device; freed with its last reference, before the denoiser is loaded."""
    parts = ready.family.load(ready.source, names, dtype)
    for component in parts.components.values():
        if isinstance(component, torch.nn.Module):
            component.to(ready.device.torch)
    return cache.Encoder(ready.family, parts, fingerprint, ready.device.torch)


def _progress(say: Say, name: str) -> Callable[[int, int], None]:
    return lambda done, of: say("phase", name=name, done=done, of=of)


def _validator(ready: Prepared, trainer: Trainer, batches: loader.Loader, dtype: torch.dtype) -> Validator | None:
    """Held pictures, or a few of the training ones spread over the data, and the prompts' conditions."""
    if (spec := ready.recipe.validation) is None:
        return None
    where, first = trainer.accelerator.device, len(ready.planned) if ready.held else 0
    there = len(ready.held) or len(ready.planned)
    count = min(HELD, there)
    items = [batches.fixed([first + i * there // count]).to(where) for i in range(count)]

    def cond(caption: str) -> Cond:
        return {
            k: v.to(where) if isinstance(v, Tensor) else v
            for k, v in batches.cache.get(batches.keys.text[caption]).items()
        }

    assert spec.guidance is not None
    negative = cond(spec.negative) if ready.family.wants_negative(ready.source, spec.guidance) else None
    return Validator(trainer, spec, ready.source, items, [cond(p) for p in spec.prompts], negative, dtype)


def exported(job: Job, ready: Prepared, folder: Path) -> Path:
    """Write the result below `folder/export`; what EMA averaged is what is written."""
    with optimizers.evaluation(job.trainer.optimizer), job.trainer.stack.sampling():
        (folder / "export").mkdir(exist_ok=True)
        pipeline = type(job.trainer.family.pipe(job.trainer.parts))
        return job.trainer.adapter.export(folder / "export", ready.source, pipeline)
