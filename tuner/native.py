"""How the modules of a network are called outside of diffusers: data of a family, and what the file formats read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Rows = Literal["equal", "square first", "square first three"]
"""How the rows of a fused weight divide among its modules, in order. equal: evenly. square first: the first module has
as many rows as columns, the others share the rest evenly (grouped queries). square first three: so do three, the fourth
has the rest (FLUX's `linear1`)."""

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class Native:
    """One module of the original network, and the modules that diffusers made of it.

    name: its full name there, `{}` for a block's number. modules: diffusers' full names with the same `{}`, in the
    order in which their rows stand in the original's weight. rows: how they divide. swapped: whether the two halves of
    the rows stand in the other order (scale and shift of a last modulation), where there are two, see `swaps`.
    """

    name: str
    modules: tuple[str, ...]
    rows: Rows = "equal"
    swapped: bool = False

    def swaps(self, rows: int, columns: int) -> bool:
        """Whether the halves of a weight [rows, columns] are swapped: only where it holds two squares.

        SD3's context modulations have six such parts, but the last block's has two, and is swapped.
        """
        return self.swapped and rows == 2 * columns

    def shares(self, rows: int, columns: int) -> tuple[int, ...]:
        """How many rows each module has of a fused weight [rows, columns].

        `ValueError` where the rows do not divide so.
        """
        squares = {"equal": 0, "square first": 1, "square first three": 3}[self.rows]
        rest, others = rows - squares * columns, len(self.modules) - squares
        if rest <= 0 or rest % others:
            raise ValueError(f"{self.name}: {rows} rows of {columns} columns do not divide into {len(self.modules)}")
        return (columns,) * squares + (rest // others,) * others

    def places(self, rows: int, columns: int) -> tuple[tuple[slice, ...], ...]:
        """Per module, in order: which rows of the original's weight [rows, columns] make up the module's, in order."""
        if self.swaps(rows, columns):
            return ((slice(rows // 2, rows), slice(0, rows // 2)),)
        places, start = [], 0
        for share in self.shares(rows, columns):
            places.append((slice(start, start + share),))
            start += share
        return tuple(places)


def renamed(native: str, module: str, names: Mapping[str, str | tuple[str, ...]]) -> tuple[Native, ...]:
    """One row per name: `native` + the name there → `module` + its name, or names, in diffusers. "" for itself."""
    rows = {k: (v,) if isinstance(v, str) else v for k, v in names.items()}
    return tuple(Native(native + k, tuple(module + (m or k) for m in v)) for k, v in rows.items())


@dataclass(frozen=True)
class Names:
    """What files of one model are called outside of diffusers.

    native: the table of modules; a module that it leaves out has the same name in both. prefix: what stands before a
    native name in a ComfyUI file. comfy: whether ComfyUI reads the family at all. kohya: whose names are flattened
    behind `lora_unet_`, "" where kohya-like tools do not know the family. text: part → (kohya's prefix, ComfyUI's
    prefix), the latter "" where it has none; behind both stand the names that CLIP's and T5's checkpoints have on the
    Hub (`text_model.encoder.layers.0 ...`). architecture: `modelspec.architecture` without `/lora`. aliases: what
    other tools write there. version: `ss_base_model_version`.

    others: a second table of names, for kohya's files where they are neither ComfyUI's nor diffusers' (`kohya` is
    "others"), and of names that files are read by and never written. text_aliases: kohya-like prefix → part, which
    other tools write for a text encoder.

    kohya_lacks: matches the dotted names whose adapters kohya's own networks leave out without an error: they look
    into the blocks only (measured with sd-scripts).
    """

    native: tuple[Native, ...] = ()
    prefix: str = "diffusion_model."
    comfy: bool = True
    kohya: Literal["", "diffusers", "native", "others"] = ""
    text: dict[str, tuple[str, str]] = field(default_factory=dict)
    architecture: str = ""
    aliases: tuple[str, ...] = ()
    version: str = ""
    others: tuple[Native, ...] = ()
    text_aliases: dict[str, str] = field(default_factory=dict)
    kohya_lacks: str = "(?!)"

    def original(self, module: str) -> tuple[str, int, Native]:
        """What a ComfyUI file calls diffusers' module: its name, its place among the fused modules, the table's row.

        Block numbers stand in the name and not in the row.
        """
        return self._original.find(module)

    def flattened(self, module: str) -> tuple[str, int, Native]:
        """As `original`: the dotted name that kohya-like tools flatten. `ValueError` where they know none."""
        if self.kohya == "native":
            return self._original.find(module)
        if self.kohya == "others":
            return self._other_original.find(module)
        if self.kohya == "diffusers":
            return module, 0, Native(module, (module,))
        raise ValueError("kohya-like tools do not know this family")

    def modules(self, name: str) -> tuple[tuple[str, ...], Native]:
        """Diffusers' modules within the original's module `name`, in the order of their rows, and the table's row.

        `others` are looked up where `native` has no such row; a name in neither is diffusers' own.
        """
        for table in (self._modules, self._other_modules):
            found = table.row(name)
            if found:
                row, numbers = found
                return tuple(_numbered(m, numbers) for m in row.modules), row
        return (name,), Native(name, (name,))

    def known(self, modules: Iterable[str]) -> dict[str, tuple[tuple[str, ...], Native]]:
        """Every dotted name by which a file may call these modules of a network → as `modules` answers.

        Diffusers' own names, `native` and `others`. Flattened, the keys tell how a kohya file's names are to be read.
        """
        found: dict[str, tuple[tuple[str, ...], Native]] = {}
        for module in modules:
            for table in (self._original, self._other_original):
                for numbers, _, row in table.matches(module):
                    fused = tuple(_numbered(m, numbers) for m in row.modules)
                    found.setdefault(_numbered(row.name, numbers), (fused, row))
            found.setdefault(module, ((module,), Native(module, (module,))))
        return found

    @cached_property
    def _original(self) -> _Table:
        return _Table((m, i, row) for row in self.native for i, m in enumerate(row.modules))

    @cached_property
    def _other_original(self) -> _Table:
        return _Table((m, i, row) for row in self.others for i, m in enumerate(row.modules))

    @cached_property
    def _modules(self) -> _Table:
        return _Table((row.name, 0, row) for row in self.native)

    @cached_property
    def _other_modules(self) -> _Table:
        return _Table((row.name, 0, row) for row in self.others)


class _Table:
    """Rows by their pattern; the first that fits counts."""

    def __init__(self, rows: Iterable[tuple[str, int, Native]]) -> None:
        self.rows: dict[str, list[tuple[re.Pattern[str], int, Native]]] = defaultdict(list)
        for pattern, place, row in rows:
            numbered = re.escape(pattern).replace(r"\{\}", r"(\d+)")
            self.rows[_shape(pattern.replace("{}", "0"))].append((re.compile(numbered), place, row))

    def matches(self, name: str) -> Iterator[tuple[tuple[str, ...], int, Native]]:
        """(block numbers, place, row) of every row that fits."""
        for pattern, place, row in self.rows.get(_shape(name), ()):
            found = pattern.fullmatch(name)
            if found:
                yield found.groups(), place, row

    def find(self, module: str) -> tuple[str, int, Native]:
        """(the row's name with the block's numbers, place, row); itself without a row."""
        for numbers, place, row in self.matches(module):
            return _numbered(row.name, numbers), place, row
        return module, 0, Native(module, (module,))

    def row(self, name: str) -> tuple[Native, tuple[str, ...]] | None:
        """(row, block numbers), None without one."""
        return next(((row, numbers) for numbers, _, row in self.matches(name)), None)


def _shape(name: str) -> str:
    return _NUMBER.sub("#", name)


def _numbered(pattern: str, numbers: tuple[str, ...]) -> str:
    return pattern.format(*numbers)
