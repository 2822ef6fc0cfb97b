"""Adapters that are loaded frozen below the one that trains: they help while training and are not part of the result.

Such an adapter takes back the distillation of a turbo model, for example, so that training does not undo it by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from .adapters import start
from .errors import Problem, UserError
from .family import Family
from .formats.apply import Applied, over_parts
from .recipe import AssistantSpec, Recipe
from .source import Source


class Assistants:
    """The assistants of one run, over its networks. hashes: sha256 of each file.

    encoders: part -> text encoder, of all that some assistant changes.
    """

    def __init__(
        self,
        specs: Sequence[AssistantSpec],
        family: Family,
        source: Source,
        network: nn.Module,
        encoders: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.specs = specs
        self.applied: list[list[Applied]] = []
        self.hashes: list[str] = []
        networks = {family.denoiser.removesuffix("_2"): network, **(encoders or {})}
        for i, spec in enumerate(specs):
            path = start.find(spec.path)
            layers = start.layers_of(path, family, source)
            try:
                self.applied.append(over_parts(networks, layers, spec.strength))
            except (ValueError, RuntimeError) as error:
                raise UserError(
                    f"assistants.{i}: {path} does not fit {family.title} (family {family.name}): {error}; choose an "
                    "adapter of this model."
                ) from None
            self.hashes.append(file_hash(path))

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Each at the strength that samples are drawn with."""
        self._weigh([spec.sampling for spec in self.specs])
        try:
            yield
        finally:
            self._weigh([spec.strength for spec in self.specs])

    def _weigh(self, strengths: Sequence[float]) -> None:
        for applied, strength in zip(self.applied, strengths, strict=True):
            for one in applied:
                one.strength = strength

    def must_be(self, hashes: Sequence[str]) -> None:
        """Raise `UserError` unless the files are those with which a checkpoint was made."""
        if len(hashes) != len(self.hashes):
            raise UserError(
                f"This run was trained with {len(hashes)} assistants, its recipe now names {len(self.hashes)}; put "
                "`assistants` back as it was, or start a new run."
            )
        for i, (before, now) in enumerate(zip(hashes, self.hashes, strict=True)):
            if before != now:
                raise UserError(
                    f"assistants.{i}: {self.specs[i].path} is not the file that this run was trained with; put that "
                    "one back, or start a new run."
                )


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def problems(recipe: Recipe, family: Family, source: Source) -> Iterator[Problem]:
    """What `tuner check` can say of the assistants before the network is loaded."""
    for i, spec in enumerate(recipe.assistants):
        try:
            start.layers_of(start.find(spec.path), family, source)
        except UserError as error:
            yield Problem("error", f"assistants.{i}", f"assistants.{i}.path: {error}")
        if spec.strength == 0.0 and spec.sampling == 0.0:
            text = f"assistants.{i}: strength and sampling are both 0, so it does nothing; remove it."
            yield Problem("error", f"assistants.{i}", text)
