"""Pictures side by side: one base model, several adapters and strengths, the same prompts and seeds.

Adapters are loaded with the official pipeline's own loader, so that what is seen is what any other program sees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field, ValidationError
from safetensors import SafetensorError

from . import checkpoint, device, families, prepare, quantise, sample
from .adapters import lora
from .adapters.lora import FILE
from .adapters.text import read_by, weigh
from .data import tensor
from .device import Device
from .errors import UserError
from .events import birth
from .family import Family, Request
from .recipe import MemorySpec, Model, Quantisation, explain, setting
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


def find(adapter: str) -> Path:
    """The file or model folder that a run folder, a checkpoint or a path stands for. Raises `UserError`."""
    path = Path(adapter).expanduser()
    for candidate in (
        path / "export" / "diffusers" / FILE,
        path / "export" / "diffusers" / lora.PEFT_FILE,
        path / "export" / "model",
        path / checkpoint.WEIGHTS,
        path / FILE,
        path / lora.PEFT_FILE,
    ):
        if candidate.exists():
            return candidate
    if path.is_file() and path.suffix != ".safetensors":
        raise UserError(f"{adapter} is no .safetensors file; other formats can hold programs and are not opened.")
    if path.is_file() or (path / "model_index.json").is_file():
        return path
    if whole := checkpoint.complete(path):
        return whole[-1] / checkpoint.WEIGHTS
    raise UserError(
        f"{adapter} holds no adapter: no export, no checkpoint, no model; let the run reach a checkpoint first."
    )


def draw(wanted: Comparison, folder: Path, say: Callable[..., Any], controls: Controls) -> str:
    """Draw the whole grid into `folder`; one `sample` event per picture. Returns how it ended."""
    where = device.pick()
    total = len(wanted.contenders) * len(wanted.prompts) * len(wanted.seeds)
    say("started", pid=os.getpid(), born=birth(os.getpid()), from_step=0, steps=total, name="compare",
        family=wanted.family, device=where.name, precision="fp32" if where.kind == "cpu" else "bf16")  # fmt: skip
    family = families.build(wanted.family, wanted.options, wanted.task)
    source = Source(wanted.source, family.sources)
    family.accept(source)
    blank, pictures = _blank(wanted, family, source), _pictures(wanted, family)
    dtype = torch.float32 if where.kind == "cpu" else torch.bfloat16
    memory = _memory(wanted, family, source, where, dtype)
    say("phase", name="cache text", done=0, of=0)
    told = _told(wanted, family, blank, pictures)
    conds = _encode(family, source, quantise.Place(memory.quantise_text, dtype, where.torch), told, say)
    negative = conds.pop() if family.wants_negative(source, blank.guidance) else None
    say("phase", name="load", done=0, of=0)
    done = 0

    def loaded(contender: Contender) -> Parts:
        place = quantise.Place(memory.quantise, dtype, where.torch)
        return _contender(family, source, contender, place, memory.quantise_skip, say)

    for column, contender in enumerate(wanted.contenders):
        parts = loaded(contender)
        told = _retold(family, parts, [*wanted.prompts, wanted.negative], [*conds, *([negative] if negative else [])])
        for row, cond in enumerate(told[: len(wanted.prompts)]):
            for seed in wanted.seeds:
                if controls.stop():
                    return "stopped"
                shown = pictures[row] if pictures else ()
                against = told[-1] if negative else None
                request = replace(blank, cond=cond, negative=against, seed=seed, references=shown)
                file = sample.save(sample.draw(family, parts, request), folder / f"{column:02d}-{row:02d}-{seed}")
                done += 1
                say("sample", contender=column, prompt=row, seed=seed, file=file.name)
                say("phase", name="sample", done=done, of=total)
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


def _contender(
    family: Family,
    source: Source,
    contender: Contender,
    place: quantise.Place,
    skip: Sequence[str],
    say: Callable[..., Any],
) -> Parts:
    """The model of one column. A fresh denoiser each time: no column can leave a trace in the next."""
    path = find(contender.adapter) if contender.adapter else None
    whole_model = path is not None and path.is_dir()
    base = Source(str(path), {}) if whole_model else source
    parts = family.load(base, (family.denoiser, *family.sample_parts(base)), place.dtype)
    with quantise.base(family, parts, place, skip, say):
        if path is not None and not whole_model:
            try:
                if speaks := read_by(family, path):
                    encoders = _loaded(family, source, family.retelling_parts(source), place.dtype, place.device)
                    parts.components |= encoders.components
                lora.attach(family, parts, path, contender.strength)
                if speaks:
                    weigh(family, parts, contender.strength)
            except (ValueError, KeyError, RuntimeError, OSError, SafetensorError) as error:
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UserError(
                    f"{path} does not fit {wanted_name(family)} ({first}); choose an adapter of this family."
                ) from error
    for component in parts.components.values():
        if isinstance(component, torch.nn.Module):
            component.to(place.device)
    return parts


def wanted_name(family: Family) -> str:
    """The family as a user knows it."""
    return f"{family.title} (family {family.name})"
