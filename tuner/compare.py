"""Pictures side by side: one base model, several adapters and strengths, the same prompts and seeds.

Adapters are loaded with the official pipeline's own loader, so that what is seen is what any other program sees; files
that it cannot read go over the network by our own reader. What no reader understands is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field, ValidationError
from safetensors import SafetensorError

from . import adapters, device, families, prepare, quantise, sample
from .adapters import controlnet, lora
from .adapters.start import find
from .data import tensor
from .data.buckets import frame
from .device import Device
from .errors import UserError
from .events import birth
from .family import Family, Request
from .formats import apply, dialects, file, write
from .formats.layers import Contents, Layer
from .formats.places import Places, shapes, text_names
from .recipe import LycorisSpec, MemorySpec, Model, Quantisation, explain, setting
from .run import Controls
from .source import Source
from .types import Cond, Parts, Prompt


class Contender(Model):
    """One column: the base (adapter empty), or an adapter at a strength."""

    label: str
    adapter: str | None = setting(None, "Run folder, checkpoint folder, adapter file or model folder")
    strength: float = setting(1.0, "Weight of the adapter")


class Comparison(Model):
    """What `tuner sample` is asked to draw."""

    family: str
    source: str
    task: str = "generate"
    options: dict[str, Any] = {}
    prompts: list[str] = Field(min_length=1)
    negative: str = ""
    seeds: list[int] = [0]
    steps: int = setting(20, "Sampling steps", ge=1)
    guidance: float | None = None
    size: tuple[int, int] | None = None
    frames: int | None = setting(None, "Frames of clips; empty takes the family's usual number", ge=1)
    seconds: float | None = setting(None, "Length of sound; empty takes the family's usual length", gt=0)
    references: list[str] = setting([], "Edit and image_to_video: a picture for each prompt, or one for all")
    controls: list[str] = setting([], "For contenders with a ControlNet: a picture for each prompt, or one for all")
    lyrics: list[str] = setting([], "Lyrics for each prompt, where the family sings")
    quantise: Quantisation = setting("none", "Hold the base in fewer bits, as the run did (memory.quantise)")
    quantise_text: Quantisation = setting("none", "The same for the text encoders")
    quantise_skip: list[str] = setting([], "Layers of the base that keep their precision: layer name endings")
    contenders: list[Contender] = Field(min_length=1)


def read(path: Path) -> Comparison:
    """A checked request from a YAML file. Raises `UserError`."""
    try:
        return Comparison.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"The request {path} cannot be read ({error}); check the file.") from None
    except ValidationError as error:
        raise UserError("\n".join(explain(error, str(path), "", Comparison))) from None


def draw(wanted: Comparison, folder: Path, say: Callable[..., Any], controls: Controls) -> str:
    """Draw the whole grid into `folder`; one `sample` event per picture. Returns how it ended.

    A contender that cannot be drawn is told as `refused`, and the others are drawn; `UserError` if none is left.
    """
    where = device.pick()
    total = len(wanted.contenders) * len(wanted.prompts) * len(wanted.seeds)
    say("started", pid=os.getpid(), born=birth(os.getpid()), from_step=0, steps=total, name="compare",
        family=wanted.family, device=where.name, precision="fp32" if where.kind == "cpu" else "bf16")  # fmt: skip
    family = families.build(wanted.family, wanted.options, wanted.task)
    source = Source(wanted.source, family.sources)
    family.accept(source)
    blank, pictures = _blank(wanted, family, source), _pictures(wanted, family)
    looked_at, looked = _looked_at(wanted, blank), False
    dtype = torch.float32 if where.kind == "cpu" else torch.bfloat16
    memory = _memory(wanted, family, source, where, dtype)
    say("phase", name="cache text", done=0, of=0)
    told = _told(wanted, family, blank, pictures)
    conds = _encode(family, source, quantise.Place(memory.quantise_text, dtype, where.torch), told, say)
    negative = conds.pop() if family.wants_negative(source, blank.guidance) else None
    say("phase", name="load", done=0, of=0)
    done, refused = 0, []

    place = quantise.Place(memory.quantise, dtype, where.torch)
    for column, contender in enumerate(wanted.contenders):
        try:
            parts = _Contender(family, source, contender, place, tuple(memory.quantise_skip), say).parts(looked_at)
        except UserError as error:
            refused.append(error)
            say("refused", contender=column, text=str(error))
            done += total // len(wanted.contenders)
            continue
        looked = looked or parts.sight is not None
        told = _retold(family, parts, [*wanted.prompts, wanted.negative], [*conds, *([negative] if negative else [])])
        for row, cond in enumerate(told[: len(wanted.prompts)]):
            for seed in wanted.seeds:
                if controls.stop():
                    return "stopped"
                shown = pictures[row] if pictures else ()
                against, control = told[-1] if negative else None, looked_at[row] if looked_at else None
                request = replace(blank, cond=cond, negative=against, seed=seed, references=shown, control=control)
                file = sample.save(sample.draw(family, parts, request), folder / f"{column:02d}-{row:02d}-{seed}")
                done += 1
                say("sample", contender=column, prompt=row, seed=seed, file=file.name)
                say("phase", name="sample", done=done, of=total)
    if len(refused) == len(wanted.contenders):
        raise refused[0]
    if looked_at and not looked:
        raise UserError("`controls` are given, but none of the contenders looks at control pictures; remove them.")
    return "finished"


def _memory(wanted: Comparison, family: Family, source: Source, where: Device, dtype: torch.dtype) -> MemorySpec:
    """How the base is held. Raises `UserError` for what does not work here."""
    asked = {key: getattr(wanted, key) for key in ("quantise", "quantise_text", "quantise_skip")}
    memory, _ = prepare.quantisation(MemorySpec(**asked), family, source, where, dtype)
    for key in ("quantise", "quantise_text"):
        method = getattr(memory, key)
        if method != "none" and (reason := quantise.unfit(method, where)):
            raise UserError(f"{key} is {method}, but {reason}; take another, or none.")
    return memory


def _looked_at(wanted: Comparison, blank: Request) -> list[Any]:
    """The control picture of each prompt, of the drawn size."""
    if not wanted.controls:
        return []
    if len(wanted.controls) not in (1, len(wanted.prompts)):
        raise UserError(
            f"controls has {len(wanted.controls)} pictures for {len(wanted.prompts)} prompts; give one for "
            "each, or one for all."
        )
    opened = [tensor.open_picture(Path(path)) for path in wanted.controls]
    fitted = [tensor.fit(p, frame(p.size, (blank.width, blank.height))) for p in opened]
    return fitted * len(wanted.prompts) if len(fitted) == 1 else fitted


def _blank(wanted: Comparison, family: Family, source: Source) -> Request:
    """What all samples have in common. Raises `UserError` for a size or length that the family cannot draw."""
    g = family.geometry(source)
    size = (0, 0) if family.modality == "audio" else wanted.size or (family.resolution, family.resolution)
    if any(edge % g.multiple or (size != (0, 0) and edge < g.multiple) for edge in size):
        raise UserError(f"size is {list(size)}; both must be multiples of {g.multiple}.")
    frames = wanted.frames or g.frames if family.modality == "video" else 1
    if g.frame_step and (frames - 1) % g.frame_step:
        raise UserError(f"frames is {frames}; {family.name} makes {g.frame_step}k + 1.")
    guidance = family.guidance if wanted.guidance is None else wanted.guidance
    seconds = (wanted.seconds or g.seconds) if family.modality == "audio" else 0.0
    return Request({}, None, *size, wanted.steps, guidance, 0, frames, g.fps, seconds)


def _pictures(wanted: Comparison, family: Family) -> list[tuple[Any, ...]]:
    """What each prompt's samples start from, for tasks that need it."""
    if family.task not in ("edit", "image_to_video"):
        return []
    if len(wanted.references) not in (1, len(wanted.prompts)):
        raise UserError(
            f"references has {len(wanted.references)} pictures for {len(wanted.prompts)} prompts; task {family.task} "
            "needs one for each, or one for all."
        )
    opened = [(tensor.open_picture(Path(path)),) for path in wanted.references]
    return opened * len(wanted.prompts) if len(opened) == 1 else opened


def _told(wanted: Comparison, family: Family, blank: Request, pictures: list[tuple[Any, ...]]) -> list[Prompt]:
    """What the text encoders are told: each prompt, then the negative one (beside the first prompt's pictures)."""
    told = []
    for i, text in enumerate([*wanted.prompts, wanted.negative]):
        shown = pictures[i % len(pictures)] if pictures and "references" in family.reads else ()
        lyrics = wanted.lyrics[i] if "lyrics" in family.reads and i < len(wanted.lyrics) else ""
        seconds = blank.seconds if "seconds" in family.reads else 0.0
        told.append(Prompt(text, tuple(tensor.to_tensor(p) for p in shown), lyrics, seconds))
    return told


def _encode(
    family: Family, source: Source, place: quantise.Place, prompts: list[Prompt], say: Callable[..., Any]
) -> list[Cond]:
    parts = quantise.encoders(family, source, family.text_parts, place, say)
    with torch.no_grad():
        return family.encode_text(parts, prompts)


def _retold(family: Family, parts: Parts, texts: list[str], conds: list[Cond]) -> list[Cond]:
    """The conditions (of texts, in order) as the contender's own text encoders have them, which are then let go."""
    if not family.trainable_text or any(parts.components.get(p) is None for p in family.trainable_text):
        return conds
    told = []
    with torch.no_grad():
        for caption, cond in zip(texts, conds, strict=False):  # no condition for a negative that is not wanted
            batch = family.retell(parts, [caption], {k: v[None] for k, v in cond.items()})
            told.append({k: v[0] for k, v in batch.items()})
    for name in family.trainable_text:
        del parts.components[name]
    return told


def _loaded(family: Family, source: Source, names: Sequence[str], dtype: torch.dtype, where: torch.device) -> Parts:
    """Components of the model, on the device."""
    parts = family.load(source, names, dtype)
    for component in parts.components.values():
        if isinstance(component, torch.nn.Module):
            component.to(where)
    return parts


@dataclass
class _Contender:
    """The model of one column. A fresh denoiser each time: no column can leave a trace in the next."""

    family: Family
    source: Source
    contender: Contender
    place: quantise.Place
    skip: tuple[str, ...]
    say: Callable[..., Any]

    def parts(self, controls: Sequence[Any] = ()) -> Parts:
        """Loaded, quantised, on the device, with the adapter. Raises `UserError` for one that does not fit."""
        parts = self._read()
        if parts.sight and not controls:
            raise UserError(
                f"{self.contender.adapter} looks at control pictures; give `controls`, one for each prompt."
            )
        return parts

    def _read(self) -> Parts:
        path = find(self.contender.adapter) if self.contender.adapter else None
        if path is None:
            return self._held(self._fresh(self.source))
        if (path / "model_index.json").is_file():
            return self._held(self._fresh(Source(str(path), {})))
        try:
            return self._branch(path) if controlnet.is_branch(path) else self._with(file.read(path))
        except (ValueError, KeyError, RuntimeError, OSError, SafetensorError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path} does not fit {wanted_name(self.family)} ({first}); choose an adapter of this family."
            ) from error

    def _fresh(self, base: Source, speaks: bool = False) -> Parts:
        """Loaded; speaks: with the text encoders that an adapter may change."""
        parts = self.family.load(base, (self.family.denoiser, *self.family.sample_parts(base)), self.place.dtype)
        if speaks:
            told = self.family.retelling_parts(self.source)
            encoders = _loaded(self.family, self.source, told, self.place.dtype, self.place.device)
            parts.components |= encoders.components
        return parts

    def _held(self, parts: Parts, put: Callable[[Parts], bool] = lambda _: True, late: bool = False) -> Parts:
        """Quantised around what `put` does, on the device. Raises `_Unread` when `put` says that it could not."""
        with quantise.base(self.family, parts, self.place, self.skip, self.say, late=late):
            if not put(parts):
                raise _Unread
        for component in parts.components.values():
            if isinstance(component, torch.nn.Module):
                component.to(self.place.device)
        return parts

    def _branch(self, path: Path) -> Parts:
        """A ControlNet's folder, or a checkpoint of one."""
        strength = self.contender.strength
        try:
            return self._held(
                self._fresh(self.source), lambda parts: controlnet.attach(self.family, parts, path, strength)
            )
        except _Unread:
            raise ValueError("it is no ControlNet") from None

    def _with(self, given: file.File) -> Parts:
        """An adapter file: through the library's own loader where that reads all of it, else through ours."""
        speaks = bool(self.family.trainable_text) and any(name.startswith(TEXT) for name in given.tensors)
        if file.STATED in given.metadata:
            return self._held(self._fresh(self.source, speaks), lambda parts: self._lycoris(parts, given))
        read: list[Contents] = []

        def put(parts: Parts) -> bool:
            if controlnet.attach(self.family, parts, given.path, self.contender.strength):
                return True
            return self._attached(parts, given, speaks, read)

        try:
            return self._held(self._fresh(self.source, speaks), put, late=True)
        except _Unread:
            parts = self._held(self._fresh(self.source, speaks))
        for part in {layer.part for layer in read[0].layers}:
            apply.over(parts[part], [x for x in read[0].layers if x.part == part], self.contender.strength)
        return parts

    def _lycoris(self, parts: Parts, given: file.File) -> bool:
        """A checkpoint of ours, whose scales stand in its settings."""
        spec = LycorisSpec.model_validate_json(given.metadata[file.STATED])
        adapter: Any = adapters.build(spec, self.family, parts)
        adapter.strength = self.contender.strength
        if spec.text is not None:
            adapter = adapters.with_text(adapter, spec, self.family, parts, stop=1)
            for one in adapter.text.adapters.values():
                one.strength = self.contender.strength
        adapter.load_state_dict(given.tensors)
        return True

    def _attached(self, parts: Parts, given: file.File, speaks: bool, read: list[Contents]) -> bool:
        """Whether the library's own loader has put all of the file on; if not, `parts` are not to be used.

        What our reader made of it goes into `read`.
        """
        family = self.family
        if any(name.endswith(PEFT_ONLY) for name in given.tensors):
            self._load(parts, given.path, speaks)
            return True
        networks = {parts.denoiser: parts.network, **{p: parts[p] for p in family.trainable_text if speaks}}
        places = Places(
            family.named(self.source.config(family.denoiser)), {part: shapes(n) for part, n in networks.items()}
        )
        contents = dialects.matched(dialects.understood(given, places), given.path, wanted_name(family))
        read.append(contents)
        if leftover := dialects.told(contents, given.path):
            self.say("warning", where="contenders", text=leftover)
        if not all(write.plain(layer) for layer in contents.layers):
            return False
        if any("magnitude" in x.tensors and (speaks or contents.dialect != "diffusers") for x in contents.layers):
            return False  # the libraries lose DoRA's lengths of text encoders, and of files in others' names
        try:
            self._load(parts, given.path, speaks)
        except (ValueError, LookupError, RuntimeError, OSError, TypeError, AttributeError, AssertionError):
            return False  # its conversions expect the published sizes, and end in all kinds of errors at others
        return all(
            _reached(network, [x for x in contents.layers if x.part == part]) for part, network in networks.items()
        )

    def _load(self, parts: Parts, path: Path, speaks: bool) -> None:
        lora.attach(self.family, parts, path, self.contender.strength)
        for part in self.family.trainable_text if speaks else ():
            lora.weigh(parts[part], self.contender.strength)


def _reached(network: torch.nn.Module, layers: Sequence[Layer]) -> bool:
    """Whether a loader has put something on every module that these layers change."""
    there = {name for name, m in network.named_modules() if isinstance(m, BaseTunerLayer)}
    return all(there & set(text_names(layer.module)) for layer in layers)


class _Unread(Exception):
    """The library's own loader does not read this file."""


TEXT = (
    "text_encoder", "lora_te", "te1_", "te2_", "lycoris_text_", "base_model.model.text_", "clip_l.", "clip_g.",
)  # fmt: skip
"""How keys begin that speak of a text encoder."""
PEFT_ONLY = (".miss_block", ".hra_u", ".ia3_l")
"""Endings of checkpoints that peft alone can load."""


def wanted_name(family: Family) -> str:
    """The family as a user knows it."""
    return f"{family.title} (family {family.name})"
