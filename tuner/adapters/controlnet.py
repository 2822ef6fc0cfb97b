"""ControlNet: the network learns to follow a control picture (edges, depth, a pose), in one of two forms.

branch: diffusers' own ControlNet class of the family, a trained copy of a part of the network (Zhang et al. 2023). The
export is the folder that the family's official ControlNet pipeline takes as `controlnet=`.
lora: the network's input layer is widened to take the control's latents, its new weights zero, and a LoRA on it (full
rank) and on other layers is trained: the form of FLUX.1 [dev] Depth and Canny. diffusers' `FluxControlPipeline` loads
that of FLUX.1. Families without an official pipeline for it (AuraFlow, PixArt, HiDream) get the same file; only this
program draws with it (`tuner sample`), through their usual pipeline with the widened network.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
from diffusers.image_processor import VaeImageProcessor
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import checkpoint
from ..adapter import Named, Written, on_cpu
from ..control import CONTROLNET, Form, widen
from ..errors import UserError
from ..family import Family
from ..formats import write
from ..libraries import diffusers
from ..recipe import ControlSpec, Recipe
from ..source import Source
from ..types import Cond, Media, Parts
from . import lora

FOLDER = "controlnet"
HEADER = "controlnet"
"""In the header of a checkpoint of a branch: its configuration."""


class Sight:
    """Makes the denoiser look at a control picture while `seeing` or `drawing`; else it runs as without. See
    `types.Sight`."""

    def __init__(self, family: Family, parts: Parts, form: Form) -> None:
        assert family.control is not None
        self.family, self.parts, self.form, self.control = family, parts, form, family.control
        self.strength, self.on = 1.0, True
        self._picture: Tensor | None = None
        self._signature = inspect.signature(parts.network.forward)
        parts.network.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        picture = self._picture
        if picture is None or not (self.on or self.form == "lora"):
            return None
        told = self._signature.bind(*args, **kwargs)
        first = next(iter(told.arguments))
        x = told.arguments[first]
        # pipelines with guidance ask for one picture twice, without and with the text
        picture = picture.to(x).repeat(len(x) // len(picture), *[1] * (picture.ndim - 1))
        if self.form == "branch":
            assert self.control.branch is not None
            more = self.control.branch.ask(self.parts, told.arguments, picture, self.strength)
            return args, {**kwargs, **more}
        assert self.control.widened is not None
        told.arguments[first] = self.control.widened.join(x, picture)
        return told.args, told.kwargs

    @contextmanager
    def seeing(self, cond: Cond) -> Iterator[None]:
        """See `types.Sight`."""
        if "control" not in cond:
            raise AssertionError("a ControlNet was given a batch without control pictures")
        self._picture = cond["control"]
        try:
            yield
        finally:
            self._picture = None

    @contextmanager
    def drawing(self, picture: Any, strength: float) -> Iterator[dict[str, Any]]:
        """See `types.Sight`. Where there is no official pipeline, our hook does what it would do."""
        if picture is None:
            raise AssertionError("a ControlNet was asked for a sample without a control picture")
        control = self.control
        if self.form == "branch":
            assert control.branch is not None
            scale = strength * self.strength if self.on else 0.0
            yield {control.branch.argument: picture, "controlnet_conditioning_scale": scale}
            return
        with scaled(self.parts.network, strength):
            if control.pipeline("lora"):
                yield {"control_image": picture}
                return
            with self.seeing({"control": self._encoded(picture)}):
                yield {}

    def _encoded(self, picture: Any) -> Tensor:
        pixels = VaeImageProcessor(do_resize=False).preprocess(picture)
        where = next(self.parts.network.parameters()).device
        return self.family.encode_media(self.parts, Media(pixels).to(where))


@contextmanager
def scaled(network: nn.Module, strength: float) -> Iterator[None]:
    """Run `network` with its LoRA times `strength`."""
    layers = [m for m in network.modules() if isinstance(m, LoraLayer)]
    kept = [dict(layer.scaling) for layer in layers]
    for layer, scaling in zip(layers, kept, strict=True):
        layer.scaling = {k: v * strength for k, v in scaling.items()}
    try:
        yield
    finally:
        for layer, scaling in zip(layers, kept, strict=True):
            layer.scaling = scaling


class ControlNet:
    """A branch beside the frozen denoiser. Its state has the names of diffusers' file."""

    def __init__(self, branch: Any, parts: Parts, sight: Sight) -> None:
        parts.network.requires_grad_(False)
        self.branch: Any = branch.float().requires_grad_(True)
        self.sight = sight
        parts.components[CONTROLNET], parts.sight = self.branch, sight

    def parameters(self) -> list[nn.Parameter]:
        """See `Adapter.parameters`."""
        return list(self.branch.parameters())

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """See `Adapter.scaled`."""
        kept = self.sight.strength
        self.sight.strength = kept * strength
        try:
            yield
        finally:
            self.sight.strength = kept

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """See `Adapter.disabled`."""
        kept, self.sight.on = self.sight.on, False
        try:
            yield
        finally:
            self.sight.on = kept

    def state_dict(self) -> dict[str, Tensor]:
        """See `Adapter.state_dict`; also the tables of positions, which the file holds."""
        return on_cpu(self.branch.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load_state_dict`."""
        own = self.branch.state_dict()
        if own.keys() != state.keys():
            raise AssertionError(f"checkpoint and adapter differ in {sorted(own.keys() ^ state.keys())[:5]}")
        self.branch.load_state_dict(state)

    def metadata(self) -> dict[str, str]:
        """The configuration, from which a checkpoint's branch can be built."""
        return {"format": "pt", HEADER: self.branch.to_json_string()}

    def export(self, folder: Path, source: Source, pipeline: Any) -> list[Written]:
        """Write `folder/controlnet` as `from_pretrained` of its class takes it, open it with that and compare."""
        target, partial = folder / FOLDER, folder / f".partial-{FOLDER}"
        shutil.rmtree(partial, ignore_errors=True)
        self.branch.save_pretrained(partial)
        config = partial / "config.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings.pop("_name_or_path", None)  # a path of this machine is nobody else's business
        config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        written, live = type(self.branch).from_pretrained(partial).state_dict(), self.state_dict()
        wrong = [k for k in live if k not in written or not written[k].equal(live[k])]
        if wrong or written.keys() != live.keys():
            raise AssertionError(f"the exported ControlNet differs from the trained one in {wrong[:5]}")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        return [Written(target, "controlnet", ("diffusers",))]


class ControlLora(Named):
    """A LoRA on the denoiser with a widened input layer. Its state has the names of the exported file."""

    def __init__(self, spec: ControlSpec, layers: list[str], parts: Parts, sight: Sight) -> None:
        assert sight.control.widened is not None
        self.how, self.part = sight.control.widened, parts.denoiser
        self.denoiser: Any = parts.network
        self.denoiser.requires_grad_(False)
        widen(self.denoiser, self.how)
        parts.sight = self.sight = sight
        name, scale = self.how.embedder, (spec.alpha or spec.rank) / spec.rank
        wide: Any = self.denoiser.get_submodule(name).weight
        full = min(wide.shape[0], wide[0].numel())
        wanted = [name, *(n for n in layers if n != name)]
        self.config = peft.LoraConfig(
            r=spec.rank,
            lora_alpha=spec.alpha or spec.rank,
            target_modules=wanted,
            rank_pattern={name: full},
            alpha_pattern={name: scale * full},
        )
        if hasattr(self.denoiser, "add_adapter"):
            self.denoiser.add_adapter(self.config)  # pyrefly: ignore[not-callable]
        else:  # networks of diffusers without its PeftAdapterMixin
            peft.inject_adapter_in_model(self.config, self.denoiser)
        own = self.denoiser.named_parameters()
        self.names = {n: f"{self.part}.{n.replace('.default.', '.')}" for n, p in own if p.requires_grad}
        if len(self.names) != 2 * len(wanted):
            raise AssertionError(f"peft attached {len(self.names)} tensors to {len(wanted)} layers")
        for p in self.parameters():
            p.data = p.data.float()

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """See `Adapter.scaled`."""
        with scaled(self.denoiser, strength):
            yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """See `Adapter.disabled`; the widened layer's new weights are zero, so that the base ignores the control."""
        layers = [m for m in self.denoiser.modules() if isinstance(m, LoraLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def metadata(self) -> dict[str, str]:
        """What diffusers reads from the header."""
        stated = {f"{self.part}.{k}": v for k, v in self._plain().items()}
        return {"format": "pt", lora.METADATA: json.dumps(stated, default=str)}

    def _plain(self) -> dict[str, Any]:
        return {k: sorted(v) if isinstance(v, set) else v for k, v in self.config.to_dict().items()}

    def export(self, folder: Path, source: Source, pipeline: Any) -> list[Written]:
        """Write `folder/controlnet/pytorch_lora_weights.safetensors`, open it again and compare.

        diffusers loads it where the family has an official pipeline for it, else only this program.
        """
        target, partial = folder / FOLDER, folder / f".partial-{FOLDER}"
        shutil.rmtree(partial, ignore_errors=True)
        live = self.state_dict()
        layers = {k.removeprefix(f"{self.part}."): v for k, v in live.items()}
        prefix = f"{self.part}." if write.layout(pipeline, self.denoiser) == "pipeline" else ""
        if prefix:
            settings = {f"{self.part}_lora_layers": layers, f"{self.part}_lora_adapter_metadata": self._plain()}
            pipeline.save_lora_weights(partial, **settings)
        else:
            partial.mkdir(parents=True)
            save_file(
                layers, partial / write.FILE, {"format": "pt", lora.METADATA: json.dumps(self._plain(), default=str)}
            )
        written = load_file(partial / write.FILE)
        wanted = {f"{prefix}{k}": v for k, v in layers.items()}
        if written.keys() != wanted.keys() or not all(written[k].equal(v) for k, v in wanted.items()):
            raise AssertionError(f"{partial / write.FILE} differs from the trained adapter")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        return [Written(target / write.FILE, "controlnet", ("diffusers",) if self.how.pipeline else ("tuner",))]


def build(spec: ControlSpec, family: Family, parts: Parts) -> ControlNet | ControlLora:
    """See `adapters.build`."""
    form = _form(spec, family)
    if form == "branch":
        branch = _made(spec, family, parts) if spec.start is None else _started(spec.start, family, parts)
        return ControlNet(branch, parts, Sight(family, parts, form))
    layers = lora.layers_for(spec.targets, family, parts.network)
    adapter = ControlLora(spec, layers, parts, Sight(family, parts, form))
    if spec.start is not None:
        _go_on(adapter, spec.start)
    return adapter


def _form(spec: ControlSpec, family: Family) -> Form:
    assert family.control is not None
    return spec.form or family.control.forms[0]


def _made(spec: ControlSpec, family: Family, parts: Parts) -> Any:
    """A fresh branch. Raises `UserError` when it shall have more blocks than the network."""
    assert family.control is not None and family.control.branch is not None
    how, counts = family.control.branch, []
    for place, (run, usual) in enumerate(how.blocks):
        there = len(parts.network.get_submodule(run))  # pyrefly: ignore
        wanted = min(usual, there) if spec.layers is None else spec.layers[place]
        if wanted > there:
            raise UserError(
                f"adapter.layers asks for {wanted} blocks of {run}, but the model has {there}; ask for less."
            )
        counts.append(wanted)
    return how.make(parts, counts)


def _started(start: str, family: Family, parts: Parts) -> Any:
    """An existing branch. Raises `UserError` when it is none of this family's."""
    where = find(Path(start))
    if where is None:
        raise UserError(f"adapter.start: {start} holds no ControlNet; give a folder with its config.json and weights.")
    try:
        return opened(family, parts, where)
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"adapter.start: {start} does not fit {family.name} ({first}); choose another.") from error


def _go_on(adapter: ControlLora, start: str) -> None:
    where = find(Path(start))
    if where is None or where.is_dir():
        raise UserError(f"adapter.start: {start} holds no control LoRA; give a folder with its {write.FILE}.")
    own, found = adapter.state_dict(), {}
    for name, value in load_file(where).items():
        found[name if name.startswith(f"{adapter.part}.") else f"{adapter.part}.{name}"] = value.float()
    wrong = [n for n in {**own, **found} if n not in own or n not in found or own[n].shape != found[n].shape]
    if wrong:
        raise UserError(
            f"adapter.start: {start} does not fit this recipe ({len(wrong)} tensors differ, such as "
            f"{sorted(wrong)[0]}); give adapter.rank and adapter.targets as it was made with, and the same family."
        )
    adapter.load_state_dict(found)


# -- files -------------------------------------------------------------------------------------------------------------


def find(path: Path) -> Path | None:
    """The ControlNet of a run folder, a checkpoint folder or a folder: a branch's folder, or a file; None if none."""
    path = path.expanduser()
    for folder in (path / "export" / FOLDER, path):
        if (folder / "config.json").is_file():
            return folder
        if (folder / write.FILE).is_file():
            return folder / write.FILE
    if path.is_file():
        return path
    for folder in (path, *reversed(checkpoint.complete(path))):
        if (folder / checkpoint.WEIGHTS).is_file():
            return folder / checkpoint.WEIGHTS
    return None


def opened(family: Family, parts: Parts, path: Path) -> Any:
    """The branch in a folder or a checkpoint's file. Raises `ValueError` when it is none of this family's."""
    if family.control is None or family.control.branch is None:
        raise ValueError(f"{family.name} has no ControlNet branch")
    how = family.control.branch
    cls, config = getattr(diffusers, how.network), _config(path)
    if config.get("_class_name") != how.network:
        raise ValueError(f"it is a {config.get('_class_name', 'nameless network')}, needed is a {how.network}")
    if reason := how.refuses(parts, config):
        raise ValueError(reason)
    if path.is_dir():
        return cls.from_pretrained(path)
    branch = cls.from_config(config)
    branch.load_state_dict(load_file(path))
    return branch


def _config(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return json.loads((path / "config.json").read_text(encoding="utf-8"))
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get(HEADER, "{}"))


def is_branch(path: Path) -> bool:
    """Whether `path` is a ControlNet: its folder, or a checkpoint of one."""
    if path.is_dir():
        return True
    try:
        return bool(_config(path))
    except (SafetensorError, OSError):
        return False  # whoever reads it as an adapter says what is wrong with it


def attach(family: Family, parts: Parts, path: Path, strength: float) -> bool:
    """Load a ControlNet or control LoRA for sampling as its official pipeline does; False when `path` holds none.

    Raises `ValueError` when it is none of this family's.
    """
    if is_branch(path):
        sight = Sight(family, parts, "branch")
        where = next(parts.network.parameters())
        parts.components[CONTROLNET] = opened(family, parts, path).to(where.device, where.dtype)
        parts.sight, sight.strength = sight, strength
        return True
    if family.control is None or (how := family.control.widened) is None:
        return False
    base = parts.network.get_submodule(how.embedder).weight
    with safe_open(path, "pt") as file:
        name = next((k for k in file.keys() if k.endswith(f"{how.embedder}.lora_A.weight")), None)  # noqa: SIM118
        if name is None or file.get_slice(name).get_shape()[1] != 2 * base.shape[1]:  # pyrefly: ignore
            return False
    if not how.pipeline:  # the official pipeline widens by itself
        widen(parts.network, how)
    parts.sight = Sight(family, parts, "lora")
    lora.attach(family, parts, path, strength)
    return True


# -- what does not work ------------------------------------------------------------------------------------------------


def refuses(family: Family, recipe: Recipe) -> str | None:
    """See `adapters.refuses`."""
    spec, control = recipe.adapter, family.control
    assert isinstance(spec, ControlSpec)
    if control is None:
        return (
            f"adapter.kind is controlnet, but the libraries have no ControlNet for {family.name} and none is "
            "built here; use adapter.kind=lora."
        )
    if family.task != "generate":
        return f"adapter.kind is controlnet, but task is {family.task}; a ControlNet is trained with task: generate."
    form = _form(spec, family)
    if form not in control.forms:
        return f"adapter.form is {form}, but {family.name} has only {', '.join(control.forms)}; choose that."
    return _idle(spec, form) or _layers(spec, family)


def _idle(spec: ControlSpec, form: Form) -> str | None:
    """Settings of the other form."""
    useless = {"rank", "alpha", "targets"} if form == "branch" else {"layers"}
    fields = ControlSpec.model_fields
    for name in sorted(useless & spec.model_fields_set):
        if getattr(spec, name) not in (None, fields[name].default):
            other = "lora" if form == "branch" else "branch"
            return (
                f"adapter.{name} belongs to adapter.form={other}, but the form here is {form}; remove adapter.{name}."
            )
    if spec.start is not None and spec.layers is not None:
        return "adapter.layers is set, but the blocks are those of adapter.start; remove one of the two."
    return None


def _layers(spec: ControlSpec, family: Family) -> str | None:
    if spec.layers is None:
        return None
    assert family.control is not None and family.control.branch is not None
    runs = [run for run, _ in family.control.branch.blocks]
    if not runs:
        return f"adapter.layers has no meaning for {family.name}, whose branch is the whole way down; remove it."
    if len(spec.layers) != len(runs):
        return f"adapter.layers has {len(spec.layers)} numbers; {family.name} takes {len(runs)} ({', '.join(runs)})."
    if min(spec.layers) < 0 or sum(spec.layers) == 0:
        return f"adapter.layers is {spec.layers}; give numbers of blocks, at least one above 0."
    return None
