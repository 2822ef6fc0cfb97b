"""Understand a recipe and plan its data, before any weights are loaded: what `check` shows, and a run begins with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import torch

from . import adapters, assistants, device, export, extensions, families, optimizers, quantise
from .adapters import _lycoris_start, start
from .data import index, plan, repeats, sampler
from .data.item import Kind
from .device import Device
from .errors import Problem, UserError
from .extension import Extension, Stack
from .family import Family, Geometry
from .home import cache_folder
from .libraries import diffusers
from .objective import Objective
from .recipe import AdapterSpec, ControlSpec, LoraSpec, LycorisSpec, MemorySpec, Recipe
from .source import Source

LISTED = 200
"""Up to this number of uses, a report lists every one unless it is told otherwise."""


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
    plan: plan.Plan
    problems: list[Problem] = field(default_factory=list)

    @cached_property
    def tokens(self) -> Callable[[str], list[tuple[str, int, int]]]:
        """What `Family.token_counts` says of a caption; each distinct caption is counted once."""
        names = [p for p in self.family.text_parts if p.startswith("tokenizer") and self.source.has(p)]
        tokenizers = {name: self.source.load(name, torch.float32) for name in names}
        return cache(partial(self.family.token_counts, tokenizers))

    @cached_property
    def told_anew(self) -> bool:
        """Whether captions are encoded anew in every step: a text encoder has an adapter, or an assistant over it."""
        if getattr(self.recipe.adapter, "text", None) is not None:
            return True
        try:
            return any(start.text_parts(one.path, self.family, self.source) for one in self.recipe.assistants)
        except UserError:  # told by `assistants.problems`
            return False

    @cached_property
    def trained(self) -> np.ndarray:
        """Places in the plan of what is trained on."""
        return self.plan.having("train", "regularisation")

    @property
    def left_out(self) -> int:
        """How many items no data set trains on, for whatever reason."""
        return len(np.unique(np.concatenate([r for r, _, why in self.plan.unused if why != "done"] or [[]])))

    @cached_property
    def held(self) -> np.ndarray:
        """Places in the plan of what is held for the validation loss."""
        return self.plan.having("validation")

    @cached_property
    def weights(self) -> list[dict[str, Any]]:
        """The denoiser, and text encoders that are quantised: bytes of their weights as they are, and as they will be
        held. Raises `UserError`."""
        memory, dtype, rows = self.recipe.memory, device.storage(self.recipe, self.device), []
        asked = [(self.family.denoiser, memory.quantise, memory.quantise_skip)]
        if memory.quantise_text != "none":
            asked += [(p, memory.quantise_text, []) for p in encoders(self.family, self.source)]
        for part, method, skip in asked:
            whole, small = held(self.family, self.source, part, method, dtype, skip)
            rows.append({"part": part, "quantise": method, "before": whole, "bytes": small})
        return rows

    @cached_property
    def sampler(self) -> sampler.Sampler:
        """The order of the training items."""
        train, chosen = self.recipe.train, self.trained
        each = repeats.of(self.index, self.recipe.data)[self.plan.rows[chosen]]
        sets, times = [b.dataset for b in self.plan.buckets], [spec.weight for spec in self.recipe.data]
        uses = sampler.uses(chosen, self.plan.bucket[chosen], sets, times, each)
        return sampler.Sampler(uses, sampler.Rules(train.batch, train.accumulate, train.seed, train.last_batch))


def prepare(recipe: Recipe, progress: Callable[[int, int], None] | None = None) -> Prepared:
    """Understand a recipe and plan its data. Raises `UserError` for what makes planning impossible.

    Everything else that is wrong or worth knowing is in `problems`. progress: (files looked at, files).
    """
    family = families.build(recipe.family, recipe.options, recipe.task)
    source = Source(recipe.source, family.sources)
    family.accept(source)
    where = device.pick()
    device.check_precision(recipe, where)
    geometry = family.geometry(source)
    asked, recipe = recipe.adapter, resolve(recipe, family, source, geometry, where)
    memory, chosen = quantisation(recipe.memory, family, source, where, device.storage(recipe, where))
    recipe = recipe.model_copy(update={"memory": memory})
    built = [extensions.build(spec, i) for i, spec in enumerate(recipe.extensions)]
    Stack(built)
    objective = family.objective(source, recipe.train.snr_gamma)
    found = index.scan(recipe.data, kinds(family), progress, cache_folder())
    made = plan.plan(found, recipe.data, recipe.media, recipe.media.resolutions or [], geometry)
    ready = Prepared(recipe, family, source, objective, geometry, where, built, found, made)
    ready.problems += [*chosen, *found.problems, *made.problems, *_data_problems(ready), *_settings(ready)]
    ready.problems += _begun(ready, asked)
    return ready


def without_data(recipe: Recipe) -> Prepared:
    """A recipe understood without looking at its data, for what needs only the model and what trained.

    Raises `UserError` as `prepare` does.
    """
    family = families.build(recipe.family, recipe.options, recipe.task)
    source, where = Source(recipe.source, family.sources), device.pick()
    family.accept(source)
    geometry, nothing = family.geometry(source), index.Index()
    built = [extensions.build(spec, i) for i, spec in enumerate(recipe.extensions)]
    objective = family.objective(source, recipe.train.snr_gamma)
    made = plan.plan(nothing, [], recipe.media, recipe.media.resolutions or [], geometry)
    return Prepared(recipe, family, source, objective, geometry, where, built, nothing, made)


def kinds(family: Family) -> frozenset[Kind]:
    """What a family trains on: a picture is a clip of one frame, but no clip to start from its first frame."""
    if family.modality == "video":
        return frozenset({"video"}) if family.task == "image_to_video" else frozenset({"image", "video"})
    return frozenset({family.modality})


def resolve(recipe: Recipe, family: Family, source: Source, geometry: Geometry, where: Device) -> Recipe:
    """The recipe with every default of its family and optimiser written out: what the run folder keeps.

    So does the number of CPU threads, on which the last digits of a loss depend: a resumed run takes the same.
    """
    train, media = recipe.train, recipe.media
    resolutions = media.resolutions or ([family.resolution] if family.resolution else None)
    lengths: dict[str, Any] = {}
    if family.modality == "video":
        lengths = {"frames": media.frames or geometry.frames, "fps": media.fps or geometry.fps}
    elif family.modality == "audio":
        lengths = {"seconds": media.seconds or geometry.seconds}
    change: dict[str, Any] = {
        "options": family.options.model_dump(mode="json"),
        "media": media.model_copy(update={"resolutions": resolutions, **lengths}),
        "train": train.model_copy(
            update={
                "lr": train.lr or optimizers.default_lr(train.optimizer),
                "timesteps": train.timesteps or family.timesteps,
                "threads": train.threads or (torch.get_num_threads() if where.kind == "cpu" else None),
            }
        ),
    }
    change["adapter"] = _adapter(recipe, family, source, change["train"].lr)
    if (spec := recipe.validation) is not None:
        update: dict[str, Any] = {"guidance": family.guidance if spec.guidance is None else spec.guidance}
        if resolutions:
            update["size"] = spec.size or media.size or (resolutions[0], resolutions[0])
        if family.modality == "video":
            update["frames"] = spec.frames or lengths["frames"]
        if family.modality == "audio":
            update["seconds"] = spec.seconds or lengths["seconds"]
        change["validation"] = spec.model_copy(update=update)
    return recipe.model_copy(update=change)


def _adapter(recipe: Recipe, family: Family, source: Source, lr: float) -> AdapterSpec:
    spec = recipe.adapter
    if isinstance(spec, LoraSpec | LycorisSpec):
        return _with_text(_understood(spec, family, source), family, lr)
    if isinstance(spec, ControlSpec) and family.control is not None:
        form = spec.form or family.control.forms[0]
        alpha = spec.alpha or float(spec.rank) if form == "lora" else spec.alpha
        return spec.model_copy(update={"form": form, "alpha": alpha})
    return spec


def _understood(spec: LoraSpec | LycorisSpec, family: Family, source: Source) -> LoraSpec | LycorisSpec:
    """With what the file says from which the run begins, and with usual values."""
    if isinstance(spec, LycorisSpec):
        return _lycoris_start.understood(spec, family, source) if spec.start else spec.filled()
    if spec.start:
        spec = start.understood(spec, family, source)
    if spec.alpha is None and not spec.ranks:  # else each layer's own rank
        spec = spec.model_copy(update={"alpha": float(spec.rank)})
    return spec


def _with_text(spec: LoraSpec | LycorisSpec, family: Family, lr: float) -> LoraSpec | LycorisSpec:
    """The settings of the text encoders written out."""
    if (text := spec.text) is None:
        return spec
    own: dict[str, Any] = {"parts": text.parts or list(family.trainable_text) or None}
    if not text.frozen:
        own["lr"] = text.lr or lr
    if isinstance(spec, LoraSpec):
        own["rank"] = text.rank or spec.rank
        own["alpha"] = text.alpha or (None if text.ranks else float(own["rank"]))  # type: ignore[attr-defined]
    return spec.model_copy(update={"text": text.model_copy(update=own)})


def quantisation(
    memory: MemorySpec, family: Family, source: Source, where: Device, dtype: torch.dtype
) -> tuple[MemorySpec, list[Problem]]:
    """The settings with `auto` replaced by what this device takes, and notes that say why. dtype: of the networks."""
    notes, change = [], {}
    for key, names in (("quantise", (family.denoiser,)), ("quantise_text", encoders(family, source))):
        if getattr(memory, key) == "auto":
            change[key], why = quantise.choose(
                where, lambda names=names: sum(held(family, source, name, "int8", dtype)[1] for name in names)
            )
            notes.append(Problem("note", f"memory.{key}", f"memory.{key} is auto, which takes {change[key]}: {why}"))
    return memory.model_copy(update=change), notes


def encoders(family: Family, source: Source) -> tuple[str, ...]:
    """The text encoders of a model that stand in its own folder."""
    return tuple(p for p in family.text_parts if p.startswith("text_encoder") and source.has(p))


def held(
    family: Family, source: Source, part: str, method: str, dtype: torch.dtype, skip: Sequence[str] = ()
) -> tuple[int, int]:
    """Bytes of one network as it is, and quantised, from its configuration alone. Raises `UserError`."""
    network = source.outline(part)
    pattern = quantise.of_base(family) if part == family.denoiser else quantise.OF_TEXT
    names = [] if method == "none" else quantise.layers(network, pattern, method, skip)
    return quantise.predicted(network, names, method, dtype)


# -- problems ----------------------------------------------------------------------------------------------------------


def _data_problems(ready: Prepared) -> Iterator[Problem]:
    recipe = ready.recipe
    planned = len(ready.trained)
    if not planned and not any(p.level == "error" for p in ready.problems):
        nothing = not any(spec.role != "validation" for spec in recipe.data)
        if nothing and not ready.index.problems:
            yield Problem("error", "data", "No data set has role=train; give at least one for training.")
    if not len(ready.index):
        return
    yield from index.long_captions(ready.index, recipe.data, ready.tokens, ready.family.name)


def _settings(ready: Prepared) -> Iterator[Problem]:
    """Settings that contradict each other or do nothing here."""
    recipe = ready.recipe
    yield from optimizers.problems(recipe.train)
    yield from quantise.problems(recipe, ready.device)
    if recipe.memory.quantise_skip and recipe.memory.quantise != "none":
        try:
            _ = ready.weights
        except UserError as error:
            yield Problem("error", "memory.quantise_skip", str(error))
    if recipe.train.shift != "auto" and not ready.objective.flow:
        text = f"train.shift has no meaning for {ready.family.name}, which is no flow model; remove it."
        yield Problem("error", "train.shift", text, {"train.shift": "auto"})
    yield from _targets(ready)
    yield from _text(ready)
    yield from _sample_settings(ready)
    yield from _sweeps(ready)
    yield from _media_settings(ready)
    yield from _idle(ready)
    yield from _controls(ready)
    yield from formats(ready)
    if reason := adapters.refuses(ready.family, recipe):
        yield Problem("error", "adapter", reason)
    yield from assistants.problems(recipe, ready.family, ready.source)
    if reason := ready.family.refuses(recipe):
        yield Problem("error", "family", reason)
    for i, e in enumerate(ready.extensions):
        if reason := e.refuses(ready.family, recipe):
            yield Problem("error", f"extensions.{i}", f"{e.kind}: {reason}")


def _targets(ready: Prepared) -> Iterator[Problem]:
    targets, presets = getattr(ready.recipe.adapter, "targets", []), ready.family.targets
    if isinstance(targets, str) and targets not in presets:
        text = f"adapter.targets is {targets!r}; {ready.family.name} has the presets {', '.join(presets)}; choose one."
        yield Problem("error", "adapter.targets", text, {"adapter.targets": "default"})


def formats(ready: Prepared) -> Iterator[Problem]:
    """Files that this family or way of training does not have."""
    save, family = ready.recipe.save, ready.family
    for text in export.checked(save.formats, family.names):
        yield Problem("error", "save.formats", text, {"save.formats": []})
    adapter = ready.recipe.adapter
    own = {"full": "a whole model", "controlnet": "a ControlNet"}.get(adapter.kind)
    if getattr(adapter, "algorithm", "") == "ia3" and adapter.kind == "peft":
        own = "peft's own file"
    if save.formats and own:
        text = (
            f"save.formats is {', '.join(save.formats)}, but adapter.kind={adapter.kind} here writes {own}; remove it."
        )
        yield Problem("error", "save.formats", text, {"save.formats": []})


def _begun(ready: Prepared, asked: AdapterSpec) -> Iterator[Problem]:
    """What an adapter that the run goes on from brings to the text encoders, where the recipe says another thing.

    asked: as the recipe has it.
    """
    path, text = getattr(asked, "start", None), getattr(ready.recipe.adapter, "text", None)
    if path is None or text is None or asked.kind == "controlnet":
        return
    there = start.text_parts(path, ready.family, ready.source)
    if getattr(asked, "text", None) is None:
        said = (
            f"adapter.start: {path} changes {', '.join(there)} too. That part acts and is written into the result, but "
            "does not learn; set adapter.text.frozen: false to train it as well."
        )
        yield Problem("note", "adapter.text", said, {"adapter.text": {"frozen": False}})
    elif text.frozen and not there:
        said = (
            f"adapter.text.frozen holds the text encoders' part of adapter.start, but {path} has none; remove "
            "adapter.text, or set adapter.text.frozen: false to train them from the beginning."
        )
        yield Problem("error", "adapter.text.frozen", said, {"adapter.text": None})
    elif new := [part for part in text.parts if part not in there]:
        said = f"adapter.start: {path} says nothing of {', '.join(new)}, whose adapter begins anew."
        yield Problem("note", "adapter.text.parts", said)


def _text(ready: Prepared) -> Iterator[Problem]:
    """Training of the text encoders that the family can train: what cannot be, and what it means for the cache."""
    text, family, source = getattr(ready.recipe.adapter, "text", None), ready.family, ready.source
    if not family.trainable_text or not ready.told_anew:
        return
    method = ready.recipe.memory.quantise_text
    if method != "none" and family.retells_all:
        said = (
            f"memory.quantise_text is {method}, but this run changes the text encoders of {family.name} (adapter.text "
            "or assistants), which works on plain weights; set memory.quantise_text to none."
        )
        yield Problem("error", "memory.quantise_text", said, {"memory.quantise_text": "none"})
    known = ", ".join(family.trainable_text)
    rest = "nothing of them is cached" if family.retells_all else f"only what {known} does not say of them is cached"
    if text is None:
        said = f"An assistant changes the text encoders: captions and prompts are encoded anew in every step, {rest}."
        yield Problem("note", "assistants", said)
        return
    if lacking := [p for p in family.trainable_text if not source.has(p)]:
        said = f"adapter.text is set, but source {source.name} has no {', '.join(lacking)}; remove it."
        yield Problem("error", "adapter.text", said)
    elif strange := [p for p in text.parts if p not in family.trainable_text]:
        said = f"adapter.text.parts has {', '.join(strange)}, but {family.name} can train {known}; choose of those."
        yield Problem("error", "adapter.text.parts", said)
    else:
        does = "is held as adapter.start has it" if text.frozen else "trains"
        said = f"{', '.join(text.parts)} {does}: captions and prompts are encoded anew in every step, {rest}."
        yield Problem("note", "adapter.text", said)
    train = ready.recipe.train
    if train.optimizer == "prodigy" and not text.frozen and text.lr != train.lr:
        said = (
            f"adapter.text.lr is {text.lr:g}, but prodigy has one step size for all; set it to train.lr, {train.lr:g}."
        )
        yield Problem("error", "adapter.text.lr", said, {"adapter.text.lr": train.lr})


def _sample_settings(ready: Prepared) -> Iterator[Problem]:
    spec, g = ready.recipe.validation, ready.geometry
    if spec is None:
        return
    if spec.size is not None and any(edge % g.multiple or edge < g.multiple for edge in spec.size):
        text = f"validate.size is {list(spec.size)}; both must be multiples of {g.multiple}."
        rounded = [max(1, round(edge / g.multiple)) * g.multiple for edge in spec.size]
        yield Problem("error", "validate.size", text, {"validate.size": rounded})
    if spec.frames is not None and g.frame_step and (spec.frames - 1) % g.frame_step:
        fitting = (spec.frames - 1) // g.frame_step * g.frame_step + 1
        text = (
            f"validate.frames is {spec.frames}; {ready.family.name} makes {g.frame_step}k + 1, for example {fitting}."
        )
        yield Problem("error", "validate.frames", text, {"validate.frames": fitting})
    if spec.references and len(spec.references) not in (1, len(spec.prompts)):
        text = (
            f"validate.references has {len(spec.references)} pictures for {len(spec.prompts)} prompts; "
            "give one for each prompt, or one for all."
        )
        yield Problem("error", "validate.references", text)
    if spec.lyrics and len(spec.lyrics) != len(spec.prompts):
        text = f"validate.lyrics has {len(spec.lyrics)} texts for {len(spec.prompts)} prompts; give one for each."
        yield Problem("error", "validate.lyrics", text)


def _sweeps(ready: Prepared) -> Iterator[Problem]:
    """Sweeps that cannot be drawn: their files are read here, so that a run does not end at its first sample."""
    spec = ready.recipe.validation
    for i, sweep in enumerate(spec.sweep if spec else []):
        key = f"validate.sweep.{i}"
        if [s.label for s in spec.sweep].count(sweep.label) > 1:  # pyrefly: ignore[missing-attribute]
            yield Problem("error", key, f"{key}.label: {sweep.label!r} stands twice; give each sweep its own label.")
        if sweep.trained != 1.0 and ready.recipe.adapter.kind == "full":
            text = f"{key}.trained is {sweep.trained:g}, but a full-rank run has no adapter to weigh; remove it."
            yield Problem("error", key, text)
        if sweep.trained == 1.0 and not sweep.adapters:
            yield Problem(
                "error", key, f"{key} ({sweep.label}) changes nothing; set trained or adapters, or remove it."
            )
        for one in sweep.adapters:
            try:
                start.layers_of(start.find(one.path), ready.family, ready.source)
            except UserError as error:
                yield Problem("error", key, f"{key}.adapters: {error}")


def _controls(ready: Prepared) -> Iterator[Problem]:
    """A ControlNet needs a control picture for every item, and nothing else has a use for those of samples."""
    recipe, spec = ready.recipe, ready.recipe.validation
    if recipe.adapter.kind != "controlnet":
        if spec is not None and spec.controls:
            text = "validate.controls is set, but nothing here looks at them (adapter.kind=controlnet does); remove it."
            yield Problem("error", "validate.controls", text)
        return
    rows = np.unique(ready.plan.rows)
    lacking = rows[~ready.index.table.column("control").is_valid().to_numpy()[rows]]
    datasets = ready.index.numbers("dataset")[lacking]
    for number in np.unique(datasets).tolist():
        key = f"data.{number}.control"
        text = (
            f"adapter.kind is controlnet, but {int((datasets == number).sum())} items of data.{number} have no control "
            f"picture; set {key} to the folder with a picture of the same name for each, or use adapter.kind=lora."
        )
        yield Problem("error", key, text)
    if spec is None or not spec.prompts:
        return
    if spec.controls and len(spec.controls) not in (1, len(spec.prompts)):
        text = (
            f"validate.controls has {len(spec.controls)} pictures for {len(spec.prompts)} prompts; give one for each "
            "prompt, or one for all."
        )
        yield Problem("error", "validate.controls", text)
    yield from _undrawable(ready, spec.guidance or 0.0)


def _undrawable(ready: Prepared, guidance: float) -> Iterator[Problem]:
    """Guidance that the official pipeline for control pictures has not."""
    adapter, control, family = ready.recipe.adapter, ready.family.control, ready.family
    name = control.pipeline(getattr(adapter, "form", None) or "") if control else ""
    if not name or not family.wants_negative(ready.source, guidance):
        return
    if "negative_prompt_embeds" not in inspect.signature(getattr(diffusers, name).__call__).parameters:
        text = (
            f"validate.guidance is {guidance}, but {name} draws away from no negative prompt, which this model would "
            "need for that; set validate.guidance: 1."
        )
        yield Problem("error", "validate.guidance", text, {"validate.guidance": 1.0})


def _media_settings(ready: Prepared) -> Iterator[Problem]:
    media, g = ready.recipe.media, ready.geometry
    if g.frame_step and media.frames and (media.frames - 1) % g.frame_step:
        used = (media.frames - 1) // g.frame_step * g.frame_step + 1
        text = f"media.frames is {media.frames}; {used} are used: this model takes {g.frame_step}k + 1 frames."
        yield Problem("note", "media.frames", text, {"media.frames": used})


def _idle(ready: Prepared) -> Iterator[Problem]:
    """Settings that nothing in this run reads: an option that does nothing must not pass for one that acts."""
    recipe, family = ready.recipe, ready.family
    read = {name for e in ready.extensions for name in e.reads} | set(getattr(recipe.adapter, "reads", ()))
    if family.task in ("edit", "image_to_video"):
        read.add("reference")
    for number, spec in enumerate(recipe.data):
        set_here = {
            "mask": spec.mask or spec.columns.mask,
            "control": spec.control or spec.columns.control,
            "reference": spec.reference or spec.columns.reference,
            "strength": spec.strength != 1.0,
        }
        for name, given in set_here.items():
            if given and name not in read:
                key = f"data.{number}.{name}"
                text = (
                    f"{key} is set, but nothing in this recipe reads it ({READERS[name]}); add that, or remove {key}."
                )
                yield Problem("error", key, text)
        if family.task == "edit" and spec.role != "regularisation" and not set_here["reference"]:
            key = f"data.{number}.reference"
            text = (
                f"task is edit, but {key} is empty; set it to the folder with the pictures that the edits start from."
            )
            yield Problem("error", key, text)
    media = recipe.media
    idle = {"frames": family.modality != "video", "fps": family.modality != "video"}
    idle["seconds"] = family.modality == "image"
    idle["clips"] = family.modality == "image"
    for name, does_nothing in idle.items():
        if does_nothing and name in media.model_fields_set and getattr(media, name) not in (None, 1):
            key = f"media.{name}"
            yield Problem("error", key, f"{key} has no meaning for {family.name} ({family.modality}); remove it.")


READERS = {
    "mask": "the extension masked_loss does",
    "control": "ControlNet training does",
    "reference": "task=edit and task=image_to_video do",
    "strength": "the extension slider does",
}


# -- the report --------------------------------------------------------------------------------------------------------


def report(ready: Prepared, everything: bool = False) -> dict[str, Any]:
    """The plan as plain values: what `tuner check` prints and the app shows.

    everything: list each use of each item, however many there are; else only up to 200.
    """
    per_epoch = ready.sampler.steps_per_epoch if len(ready.trained) else 0
    count = len(ready.plan) + sum(len(rows) for rows, _, _ in ready.plan.unused)
    listed = everything or count <= LISTED
    return {
        "ok": not any(p.level == "error" for p in ready.problems),
        "problems": [p.as_dict() for p in ready.problems],
        "plan": {
            "items": len(np.unique(ready.plan.rows)),
            "unused": ready.left_out,
            "buckets": _buckets(ready),
            "datasets": _shares(ready),
            "steps_per_epoch": per_epoch,
            "cell": ready.geometry.rate,
            "epochs": round(ready.recipe.train.steps / per_epoch, 2) if per_epoch else 0,
            "uses": [*_uses(ready), *_unused(ready)] if listed else [],
            "uses_listed": listed,
            "cache": predicted(ready),
            "memory": [] if any(p.where == "memory.quantise_skip" for p in ready.problems) else ready.weights,
        },
        "device": {"kind": ready.device.kind, "name": ready.device.name, "reason": ready.device.reason},
    }


def _buckets(ready: Prepared) -> list[dict[str, Any]]:
    """Every bucket: size, items, what an epoch draws from it, and the repeats with which its steps would be full."""
    made, size = ready.plan, ready.sampler.size
    counts = made.counts()
    drawn = dict(zip(np.unique(made.bucket[ready.trained]).tolist(), ready.sampler.per_bucket(), strict=True))
    rows = []
    for number, b in enumerate(made.buckets):
        items, steps = drawn.get(number, (0, 0))
        row = {
            "dataset": b.dataset, "kind": b.kind, "resolution": b.resolution, "width": b.width, "height": b.height,
            "items": int(counts[number]), "drawn": items, "steps": steps,
            "repeats_to_fill": -(-size // int(counts[number])) if items and items < size else 0,
        }  # fmt: skip
        row |= {"frames": b.frames} if b.kind == "video" else {}
        row |= {"seconds": round(b.samples / ready.geometry.sample_rate, 3)} if b.samples else {}
        row |= {"references": [list(r) for r in b.references]} if b.references else {}
        rows.append(row)
    return sorted(rows, key=lambda r: (r["dataset"], r["resolution"], r["width"], r["height"]))


def _shares(ready: Prepared) -> list[dict[str, Any]]:
    """Every data set: its part of what an epoch draws."""
    drawn = dict(zip(np.unique(ready.plan.bucket[ready.trained]).tolist(), ready.sampler.per_bucket(), strict=True))
    total = sum(n for n, _ in drawn.values()) or 1
    datasets = ready.index.numbers("dataset")
    rows = []
    for number, spec in enumerate(ready.recipe.data):
        mine = sum(n for b, (n, _) in drawn.items() if ready.plan.buckets[b].dataset == number)
        rows.append(
            {
                "path": spec.path, "role": spec.role, "items": int((datasets == number).sum()), "drawn": mine,
                "share": round(mine / total, 4),
            }
        )  # fmt: skip
    return rows


def _fullest(ready: Prepared, captions: Sequence[str]) -> list[int]:
    """Tokens of the caption that comes nearest to a limit, and that limit; [] where there is no limit."""
    counts = [(has, takes) for text in captions for _, has, takes in ready.tokens(text)]
    return list(max(counts, key=lambda c: c[0] / c[1], default=()))


def _uses(ready: Prepared) -> Iterator[dict[str, Any]]:
    each = repeats.of(ready.index, ready.recipe.data)[ready.plan.rows]
    for i in range(len(ready.plan)):
        p = ready.plan[i]
        scale = p.framing.scaled[0] / p.item.width if p.item.width else 1.0
        left, top = p.framing.corner
        row = {
            "name": p.item.name, "ref": p.item.ref, "dataset": p.item.dataset, "kind": p.item.kind,
            "resolution": p.bucket.resolution, "bucket": [p.bucket.width, p.bucket.height],
            "original": [p.item.width, p.item.height], "scale": round(scale, 4),
            "crop": [left, top, left + p.bucket.width, top + p.bucket.height], "scaled": list(p.framing.scaled),
            "captions": list(p.item.captions), "tokens": _fullest(ready, p.item.captions),
        }  # fmt: skip
        row |= {"repeats": int(each[i])} if each[i] > 1 else {}
        if p.item.kind != "image":
            row |= {"start": round(p.start, 3)}
        yield row | ({"frames": p.bucket.frames} if p.item.kind == "video" else {})


def _unused(ready: Prepared) -> Iterator[dict[str, Any]]:
    for rows, resolution, reason in ready.plan.unused:
        for row in rows.tolist():
            item = ready.index.item(row)
            yield {
                "name": item.name, "ref": item.ref, "dataset": item.dataset, "kind": item.kind,
                "resolution": resolution, "unused": plan.REASONS[reason], "original": [item.width, item.height],
            }  # fmt: skip


def predicted(ready: Prepared) -> dict[str, int]:
    """Bytes that the latents of the plan will take, 0 where the autoencoder's channels are not stated."""
    config, g = ready.source.config(ready.family.media_parts[0]), ready.geometry
    channels = int(config.get("latent_channels") or config.get("z_dim") or config.get("decoder_input_channels") or 0)
    total = 0
    for bucket, count in zip(ready.plan.buckets, ready.plan.counts(), strict=True):
        cells = (
            (bucket.width // g.rate)
            * (bucket.height // g.rate)
            * max(1, (bucket.frames - 1) // (g.frame_step or 1) + 1)
        )
        cells += bucket.samples // g.hop
        total += int(count) * cells * channels * 4
    return {"latents": total}
