"""The tools as the command line calls them: arguments in, report out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import compare
from ..device import DTYPES
from ..errors import UserError
from ..formats import dialects
from ..formats.layers import Contents, Layer
from . import bake as baking
from . import convert as converting
from . import extract as extracting
from . import inspect as inspecting
from . import merge as merging
from . import model as models
from . import resize as resizing
from . import told, write
from .commands import Told, strength
from .kept import Kept, summary
from .lowrank import Cut, dtype_of
from .model import Model
from .write import CODES, Order


def inspect(a: argparse.Namespace) -> Told:
    """See `inspect.py`."""
    path = _path(a.file)
    model = models.choose(a.family, a.model) if a.family or a.model else None
    return inspecting.inspect(path, model), told.inspected


def convert(a: argparse.Namespace) -> Told:
    """See `convert.py`."""
    path = _path(a.file)
    model = models.choose(a.family, a.model, path)
    contents, kept = model.read(path), None
    layers, order = contents.layers, _order(a, [contents])
    if a.as_lora is not None:
        layers, kept = converting.as_lora(layers, a.as_lora, model.base, DTYPES[order.precision])
    return _written(a.out, layers, model, order, [(path, contents)], kept), told.written


def merge(a: argparse.Namespace) -> Told:
    """See `merge.py`."""
    if len(a.files) < 2:
        raise UserError("merge needs at least one adapter and then the new file: A:0.7 B:0.5 OUT.")
    *given, out = a.files
    inputs = [(_path(path), value) for path, value in map(strength, given)]
    model = models.choose(a.family, a.model, inputs[0][0])
    read = [model.read(path) for path, _ in inputs]
    order = _order(a, read)
    if a.method != "svd" and (a.rank, a.energy, a.max_rank) != (None, None, None):
        raise UserError(f"--rank and --energy belong to --method svd; --method {a.method} keeps everything.")
    cut = Cut(a.rank, a.energy, a.max_rank) if a.method == "svd" else None
    weighted = [(contents.layers, value) for contents, (_, value) in zip(read, inputs, strict=True)]
    layers, kept = merging.merge(weighted, a.method, cut, model.base, DTYPES[order.precision])
    sources = [(path, contents) for (path, _), contents in zip(inputs, read, strict=True)]
    report = _written(Path(out), layers, model, order, sources, kept)
    return {**report, "adapters": [[str(path), value] for path, value in inputs]}, told.written


def resize(a: argparse.Namespace) -> Told:
    """See `resize.py`."""
    cut, path = Cut(a.rank, a.energy, a.max_rank), _path(a.file)
    model = models.choose(a.family, a.model, path)
    contents = model.read(path)
    order = _order(a, [contents])
    layers, kept = resizing.resize(contents.layers, cut, DTYPES[order.precision])
    return _written(a.out, layers, model, order, [(path, contents)], kept), told.written


def extract(a: argparse.Namespace) -> Told:
    """See `extract.py`."""
    cut = Cut(a.rank, a.energy, a.max_rank)
    model = models.choose(a.family, a.base)
    tuned = models.Source(a.tuned, model.family.sources)
    order = Order(a.to or "diffusers", a.precision or "fp32", a.metadata)
    with _bar("compare") as say:
        how = extracting.How(cut, a.all, tuple(a.part), DTYPES[order.precision])
        found = extracting.extract(tuned, model.source, how, say)
    layers = _one_expert(found.layers, model)
    report = _written(a.out, layers, model, order, [], found.kept)
    if found.left:
        first = found.left[0][0]
        report["warnings"].append(
            f"{len(found.left)} tensors that differ are left out ({found.left_share:.1%} of the difference by norm), "
            f"such as {first}" + ("." if a.all else "; --all takes norms and biases too.")
        )
    return {**report, "left": [{"name": n, "norm": size} for n, size in found.left]}, told.written


def _one_expert(layers: Sequence[Layer], model: Model) -> list[Layer]:
    """A file holds one expert, under the first one's name: a loader is told which it is for."""
    if {"transformer", "transformer_2"} <= {layer.part for layer in layers}:
        raise UserError("Both experts differ, and a file holds one; run it with --part transformer and transformer_2.")
    main = model.family.denoiser
    return [replace(layer, part=main) if layer.part == "transformer_2" else layer for layer in layers]


def bake(a: argparse.Namespace) -> Told:
    """See `bake.py`."""
    if len(a.files) < 3:
        raise UserError("bake needs adapters, the model and the new folder: A:0.7 B MODEL OUT.")
    *given, base, out = a.files
    inputs = [(_path(path), value) for path, value in map(strength, given)]
    model = models.choose(a.family, base)
    read = [model.read(path) for path, _ in inputs]
    adapters = [
        (_onto(contents.layers, a.part, model), value) for contents, (_, value) in zip(read, inputs, strict=True)
    ]
    dtype = DTYPES[a.precision] if a.precision else None
    with _bar("bake") as say:
        done = baking.bake(adapters, model.source, Path(out), dtype, say)
    report = {
        "out": out,
        "adapters": [[str(path), value] for path, value in inputs],
        "parts": {part: b.as_dict() for part, b in done.items()},
        "warnings": _leftover([(path, c) for (path, _), c in zip(inputs, read, strict=True)]),
    }
    return report, told.baked


def _onto(layers: Sequence[Layer], part: str | None, model: Model) -> list[Layer]:
    main = model.family.denoiser
    return [replace(layer, part=part) if part and layer.part == main else layer for layer in layers]


def _path(given: Path) -> Path:
    """A file as it is; of a run or checkpoint folder, its adapter file."""
    return compare.find(str(given)) if given.is_dir() else given


def _order(a: argparse.Namespace, read: Sequence[Contents]) -> Order:
    wide = CODES[str(dtype_of(layer for contents in read for layer in contents.layers))]
    return Order(a.to or write.dialect(read[0]), a.precision or wide, a.metadata)


def _written(
    out: Path, layers: Sequence[Layer], model: Model, order: Order, read: Sequence[tuple[Path, Contents]],
    kept: Sequence[Kept] | None,
) -> dict[str, Any]:  # fmt: skip
    """Write a file; the report states the error of the tool, or of the writing where the tool changed nothing."""
    said = read[0][1].metadata if len(read) == 1 else {}
    found = write.adapter(layers, model, out, order, said)
    made = summary(found if kept is None else kept)
    reading = max((k.error for k in found), default=0.0)
    return {
        "out": str(out), "dialect": order.to, "precision": order.precision, "family": model.family.name, "made": made,
        "read_back": reading, "warnings": [*_leftover(read), *_lost(layers, model, order)],
    }  # fmt: skip


def _lost(layers: Sequence[Layer], model: Model, order: Order) -> list[str]:
    """What kohya's own networks would leave out of the new file without a word."""
    own = [layer.module for layer in layers if layer.part == model.places.denoiser]
    lost = model.places.lost(own) if order.to == "kohya" else ""
    return (
        [f"kohya's own networks leave out what the file has for {lost}; LyCORIS within them loads it."] if lost else []
    )


def _leftover(read: Sequence[tuple[Path, Contents]]) -> list[str]:
    return [text for path, contents in read if (text := dialects.told(contents, path))]


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, beside the report."""
    with tqdm(desc=name, disable=not sys.stderr.isatty()) as bar:

        def say(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        yield say
