"""`python -m tuner lora ...`: the command line of the toolbox. Loads torch only when a tool runs."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError

FORMATS = ("diffusers", "comfyui", "kohya", "lycoris")
PRECISIONS = ("fp32", "bf16", "fp16")


def add(parser: argparse.ArgumentParser) -> None:
    """Give the `lora` command its tools."""
    tools = parser.add_subparsers(required=True, metavar="TOOL")

    def tool(name: str, text: str) -> argparse.ArgumentParser:
        sub = tools.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run, tool=name)
        return sub

    sub = tool("inspect", "Say what is in an adapter file, and what is wrong or private in it.")
    sub.add_argument("file", type=Path, help="an adapter file or a run folder")
    _of_model(sub)
    sub = tool("convert", "Write an adapter file in another dialect, or as a plain LoRA.")
    sub.add_argument("file", type=Path)
    sub.add_argument("out", type=Path)
    _of_model(sub)
    _writes(sub)
    sub.add_argument("--as-lora", type=int, metavar="RANK", help="turn LoHa, LoKr, OFT ... into a LoRA of this rank")
    sub = tool("merge", "Add several adapters, each with its strength: A:0.7 B:-0.5 ... OUT.")
    sub.add_argument("files", nargs="+", metavar="FILE[:strength] ... OUT", help="adapters, then the new file")
    sub.add_argument(
        "--method",
        choices=("concat", "svd", "dense"),
        default="concat",
        help="concat: exact, ranks add up (default); svd: best LoRA of --rank or --energy; dense: full differences",
    )
    _cut(sub)
    _of_model(sub)
    _writes(sub)
    sub = tool("resize", "Bring a LoRA to another rank by its singular values, and state the error.")
    sub.add_argument("file", type=Path)
    sub.add_argument("out", type=Path)
    _cut(sub)
    _of_model(sub)
    _writes(sub)
    _folders(tool)


def _folders(tool: Callable[[str, str], argparse.ArgumentParser]) -> None:
    sub = tool("extract", "Take the difference of two models as an adapter.")
    for name, text in (("tuned", "the changed model"), ("base", "the model that it was made from")):
        sub.add_argument(name, help=f"{text}: a folder in Hub layout or a Hub id")
    sub.add_argument("out", type=Path)
    _cut(sub)
    sub.add_argument("--all", action="store_true", help="norms and biases too, as full differences")
    sub.add_argument("--part", action="append", default=[], help="component (default: denoiser and CLIPs)")
    sub.add_argument("--family", help="the models' family, where their pipeline does not tell")
    _writes(sub)
    sub = tool("bake", "Add adapters into a copy of a model: A:0.7 B ... MODEL OUT.")
    sub.add_argument("files", nargs="+", metavar="FILE[:strength] ... MODEL OUT", help="adapters, model, new folder")
    sub.add_argument("--family", help="the model's family, where its pipeline does not tell")
    sub.add_argument("--part", help="component that takes the denoiser's layers (transformer_2: the second expert)")
    sub.add_argument("--precision", choices=PRECISIONS, help="numbers of the changed components (default: their own)")
    sub.add_argument("--json", action="store_true", help="JSON also on a terminal")


def _of_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--family", help="the adapter's family (default: what the file or the model tells)")
    sub.add_argument("--model", help="its base model: a name of the family, a folder in Hub layout or a Hub id")
    sub.add_argument("--json", action="store_true", help="JSON also on a terminal")


def _writes(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--to", choices=FORMATS, help="dialect of the new file (default: that of the old)")
    sub.add_argument("--precision", choices=PRECISIONS, help="numbers of the new file (default: the widest of the old)")
    sub.add_argument(
        "--metadata",
        choices=("full", "share", "minimal"),
        default="full",
        help="full (default); share: without folder names and captions; minimal: what programs need",
    )
    if not any(a.dest == "json" for a in sub._actions):
        sub.add_argument("--json", action="store_true", help="JSON also on a terminal")


def _cut(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--rank", type=int, help="rank of each layer")
    sub.add_argument("--energy", type=float, help="share of each layer's energy to keep, such as 0.95")
    sub.add_argument("--max-rank", type=int, help="with --energy: no higher rank than this")


def strength(text: str) -> tuple[Path, float]:
    """(path, strength) of `FILE[:strength]`; what follows a colon and is no number belongs to the path."""
    path, colon, number = text.rpartition(":")
    if colon and not Path(text).exists():
        try:
            value = float(number)
        except ValueError:
            return Path(text), 1.0
        if value != value or abs(value) == float("inf"):
            raise UserError(f"The strength of {path} is {number}; give a number such as 0.7.")
        return Path(path), value
    return Path(text), 1.0


def run(arguments: argparse.Namespace) -> int:
    """Run one tool: JSON, or text on a terminal. Exit code 0; 2 when a file was not written as it was meant."""
    try:
        report, text = getattr(importlib.import_module("tuner.toolbox.tools"), arguments.tool)(arguments)
    except AssertionError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    plain = sys.stdout.isatty() and not arguments.json
    sys.stdout.write((text(report) if plain else json.dumps(report, ensure_ascii=False)) + "\n")
    return 0


Told = tuple[dict[str, Any], Callable[[dict[str, Any]], str]]
"""A report and how it is told on a terminal."""
