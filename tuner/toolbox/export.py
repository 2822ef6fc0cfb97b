"""An adapter file from elsewhere in every format that its family has, each file opened again and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from .. import export
from ..adapter import Written
from ..formats import dialects, write
from . import model as models
from .lowrank import dtype_of
from .metadata import kept
from .model import Model
from .write import CODES


@dataclass(frozen=True, kw_only=True)
class Order(export.Order):
    """An order whose base weights are read from the model's files, and only where the user named the model."""

    model: Model

    def weight(self, part: str, module: str) -> Tensor | None:
        """The base's weight of a module as numbers; None where no model was named."""
        return self.model.weight(part, module)


def files(
    path: Path, folder: Path, wish: export.Wish, precision: str, base: tuple[str, str], tell: Callable[[str], None]
) -> list[Written]:
    """Write the adapter file at `path` below `folder`; the main file first. See `export.files`.

    precision: "" for the widest of the file. base: (family, model), each "" where the file or the other tells it.
    tell: gets a sentence about what of the file was not understood. Raises `UserError`.
    """
    model = models.choose(base[0] or None, base[1] or None, path)
    contents = model.read(path)
    if left := dialects.told(contents, path):
        tell(left)
    network = model.networks[model.family.denoiser]
    wish = replace(
        wish,
        precision=precision or CODES[str(dtype_of(contents.layers))],
        facts=kept(contents.metadata, wish.metadata),
    )
    order = Order(
        folder, model.places.names, model.networks, model.pipeline, write.layout(model.pipeline, network), wish,
        model=model,
    )  # fmt: skip
    return export.files(contents.layers, order)
