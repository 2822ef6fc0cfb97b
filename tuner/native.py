"""How the modules of a network are called outside of diffusers: data of a family, and what the file formats read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Rows = Literal["equal", "square first", "square first three"]
"""How the rows of a fused weight divide among its modules, in order. equal: evenly. square first: the first module has
as many rows as columns, the others share the rest evenly (grouped queries). square first three: so do three, the fourth
has the rest (FLUX's `linear1`)."""


@dataclass(frozen=True)
class Native:
    """One module of the original network, and the modules that diffusers made of it.

    name: its full name there, `{}` for a block's number. modules: diffusers' full names with the same `{}`, in the
    order in which their rows stand in the original's weight. rows: how they divide. swapped: whether the two halves of
    the rows stand in the other order (scale and shift of a last modulation).
    """

    name: str
    modules: tuple[str, ...]
    rows: Rows = "equal"
    swapped: bool = False


@dataclass(frozen=True)
class Names:
    """What files of one model are called outside of diffusers.

    native: the table of modules; a module that it leaves out has the same name in both. prefix: what stands before a
    native name in a ComfyUI file. comfy: whether ComfyUI reads the family at all. kohya: whose names are flattened
    behind `lora_unet_`, "" where kohya-like tools do not know the family. text: part → (kohya's prefix, ComfyUI's
    prefix), the latter "" where it has none. architecture: `modelspec.architecture` without `/lora`. aliases: what
    other tools write there. version: `ss_base_model_version`.
    """

    native: tuple[Native, ...] = ()
    prefix: str = "diffusion_model."
    comfy: bool = True
    kohya: Literal["", "diffusers", "native"] = ""
    text: dict[str, tuple[str, str]] = field(default_factory=dict)
    architecture: str = ""
    aliases: tuple[str, ...] = ()
    version: str = ""
