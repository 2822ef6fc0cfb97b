"""`python -m tuner`: run, resume, check, cache, caption, mask, sample, export, publish, lora, describe, demo and app.

Exit code 0: done. 1: the user must change something; one sentence on stderr says what. 2: we failed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from . import __version__, recipe
from .errors import Problem, UserError
from .home import package_recipes, runs_folder
from .toolbox import commands as toolbox


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # one model, one process: the tokenizers' own threads warn and slow down when data is loaded beside them
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        arguments = _parser().parse_args(argv)
        return arguments.command(arguments)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BrokenPipeError:
        return 0


Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
"""(name, function, help) → the parser of a new command."""


class _Parser(argparse.ArgumentParser):
    """A wrong command line is the user's to change: exit code 1, not argparse's 2, which means that we failed."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\n{self.format_usage().strip()}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m tuner", description="Fine-tune diffusion models on your own machine.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        return sub

    _runs(command)
    _data(command)
    _masks(command)
    _others(command)
    return parser


def _with_recipe(sub: argparse.ArgumentParser, optional: bool = False) -> None:
    sub.add_argument("recipe", type=Path, nargs="?" if optional else None, help="a recipe file (YAML)")
    sub.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example train.steps=50 data.0.path=/pictures"
    )


def _runs(command: Command) -> None:
    sub = command("demo", demo, "Train a style LoRA on the embedded model, and show what it learnt.")
    sub.add_argument("--out", type=Path, help="run folder (default: a new one in the workspace)")
    sub = command("run", run, "Train as a recipe says.")
    _with_recipe(sub)
    sub.add_argument("--out", type=Path, help="run folder (default: a new one in the workspace)")
    sub = command("resume", resume, "Go on with a run from its newest checkpoint.")
    sub.add_argument("folder", type=Path)
    sub.add_argument("--steps", type=int, default=0, metavar="N", help="train to step N instead: more than before")


def _data(command: Command) -> None:
    sub = command("check", check, "Show the plan of a recipe and everything that is wrong with it, without training.")
    _with_recipe(sub)
    sub.add_argument("--items", action="store_true", help="list the bucket and crop of every item, however many")
    sub.add_argument("--data", action="store_true", help="examine the data itself: copies, blur, captions, advice")
    sub.add_argument("--json", action="store_true", help="JSON also on a terminal")
    sub = command("cache", cache, "Encode media and captions ahead of a run, or look after what is cached.")
    _with_recipe(sub, optional=True)
    sub.add_argument("--verify", action="store_true", help="compare every entry with its checksum")
    sub.add_argument("--prune", action="store_true", help="delete what this recipe (none: no recipe) does not need")
    sub.add_argument("--days", type=float, default=0.0, help="with --prune: only what was not used for so many days")
    sub = command("caption", caption, "Write captions for the pictures, videos and sounds of a folder that have none.")
    sub.add_argument("path", type=Path, help="a folder, or one file")
    sub.add_argument(
        "--model",
        default="qwen",
        help="qwen (default), florence (less memory), basic (no model), a Hub id or a model folder",
    )
    sub.add_argument(
        "--purpose", default="general", help="what is to be taught: general, person, style, object, motion or sound"
    )
    sub.add_argument("--trigger", help="word that every caption will have")
    sub.add_argument("--overwrite-auto", action="store_true", help="write automatic captions anew, nobody's own")
    sub.add_argument("--batch", type=int, default=4, metavar="N", help="items at a time (default: 4)")
    sub.add_argument("--max-tokens", type=int, default=200, metavar="N", help="length of a caption (default: 200)")
    sub.add_argument("--out", type=Path, help="folder for the captions (default: beside the items)")
    sub.add_argument("--only", type=Path, metavar="FILE", help="text file with the names of some items, one per line")
    sub.add_argument("--job", type=Path, help="folder of the journal (default: a new one in the workspace)")


def _masks(command: Command) -> None:
    sub = command("mask", mask, "Make masks of the people in the pictures and videos of a folder that have none.")
    sub.add_argument("path", type=Path, help="folder of the pictures")
    sub.add_argument("--out", type=Path, required=True, help="folder for the masks (data.0.mask of a recipe)")
    sub.add_argument("--only", type=Path, metavar="FILE", help="text file with the names of some, one per line")
    sub.add_argument("--overwrite-auto", action="store_true", help="make automatic masks anew, nobody's own")
    sub.add_argument("--job", type=Path, help="folder of the journal (default: a new one in the workspace)")


def _others(command: Command) -> None:
    sub = command("sample", sample, "Draw pictures with a base model and adapters side by side.")
    sub.add_argument("request", type=Path, help="a request file (YAML)")
    sub.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    sub = command("export", export, "Write an adapter again for other programs, and check that it loads.")
    sub.add_argument(
        "path", type=Path, help="a run folder (its newest checkpoint), one of its checkpoints, or an adapter file"
    )
    sub.add_argument("--formats", help="diffusers, comfyui, kohya, lycoris, with commas (default: as the recipe says)")
    sub.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="number format of the file")
    sub.add_argument("--metadata", choices=("full", "share", "minimal"), help="what the file tells of the training")
    sub.add_argument("--out", type=Path, help="folder (default: RUN/export, RUN/export/step-000050, or FILE-export)")
    sub.add_argument("--family", default="", help="of an adapter file: its family, where the file does not tell")
    sub.add_argument("--model", default="", help="of an adapter file: its base, needed for DoRA, OFT and the like")
    sub.add_argument("--job", type=Path, help="folder of a journal (default: none)")
    sub = command("lora", toolbox.run, "Inspect, convert, merge, resize, extract and bake adapter files.")
    toolbox.add(sub)
    sub = command("publish", publish, "Send an adapter with a card and its samples to the Hugging Face Hub.")
    sub.add_argument("path", type=Path, metavar="RUN|FOLDER", help="a run folder, or a folder that holds an adapter")
    sub.add_argument("--repo", required=True, metavar="OWNER/NAME", help="where it goes")
    seen = sub.add_mutually_exclusive_group()
    seen.add_argument("--private", dest="private", action="store_true", default=True, help="for you only (default)")
    seen.add_argument("--public", dest="private", action="store_false", help="for everyone")
    sub.add_argument("--message", default="Upload with Tuner", help="what the history of the repository says")
    sub.add_argument("--update", action="store_true", help="send into a repository that exists already")
    sub.add_argument("--files", type=Path, metavar="FOLDER", help="what `export --out` wrote, in place of RUN/export")
    sub.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    sub.add_argument("--job", type=Path, help="folder of the journal (default: a new one in the workspace)")
    sub = command("describe", describe, "List families, techniques and settings.")
    sub.add_argument("--markdown", action="store_true", help="the tables of the README")
    sub.add_argument("--json", action="store_true", help="JSON (the default)")
    sub = command("app", app, "Start the studio in the browser; further arguments go to app.py.")
    sub.add_argument("arguments", nargs=argparse.REMAINDER)


def _load(arguments: argparse.Namespace) -> recipe.Recipe:
    return recipe.load(arguments.recipe, arguments.overrides)


def new_folder(name: str) -> Path:
    """A run folder in the workspace that does not exist yet: DATE-NAME, with a number when that is taken."""
    stem = f"{time.strftime('%Y-%m-%d')}-{name.replace(' ', '-')}"
    candidates = (runs_folder() / (stem if i == 1 else f"{stem}-{i}") for i in range(1, 10_000))
    return next(c for c in candidates if not c.exists())


def run(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    wanted = _load(arguments)
    return importlib.import_module("tuner.run").start(wanted, arguments.out or new_folder(wanted.name))


def resume(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    return importlib.import_module("tuner.run").resume(arguments.folder, arguments.steps)


def check(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    plain = sys.stdout.isatty() and not arguments.json
    try:
        ready = importlib.import_module("tuner.prepare").prepare(_load(arguments))
        if arguments.data:
            return _examine(ready, plain)
        report = importlib.import_module("tuner.prepare").report(ready, arguments.items)
    except UserError as error:
        problems = [Problem("error", "", line).as_dict() for line in str(error).splitlines()]
        report = {"ok": False, "problems": problems, "plan": None, "device": None}
    text = importlib.import_module("tuner.told").plan(report) if plain else json.dumps(report, ensure_ascii=False)
    sys.stdout.write(text + "\n")
    return 0 if report["ok"] else 1


def _examine(ready: Any, plain: bool) -> int:
    doctor = importlib.import_module("tuner.data.doctor")
    found = doctor.report(ready.index.items, ready.index.problems, ready.recipe)
    sys.stdout.write((doctor.plain(found) if plain else json.dumps(found, ensure_ascii=False)) + "\n")
    return 0


def cache(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    job = importlib.import_module("tuner.jobs")
    if arguments.verify:
        return job.verify()
    if arguments.prune:
        return job.prune([_load(arguments)] if arguments.recipe else [], arguments.days)
    if arguments.recipe is None:
        raise UserError("cache needs a recipe, or --verify or --prune; see `python -m tuner cache --help`.")
    return job.cache(_load(arguments))


def caption(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    job = importlib.import_module("tuner.caption.job")
    asked = job.Asked(arguments.purpose, arguments.trigger, arguments.max_tokens)
    wanted = job.Request(
        arguments.path, arguments.model, asked, arguments.batch, arguments.overwrite_auto, arguments.out, arguments.only
    )
    return job.main(wanted, arguments.job)


def mask(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    job = importlib.import_module("tuner.mask.job")
    wanted = job.Request(arguments.path, arguments.out, arguments.only, arguments.overwrite_auto)
    return job.main(wanted, arguments.job)


def sample(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    job = importlib.import_module("tuner.jobs")
    return job.sample(arguments.request, arguments.out)


def export(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    formats = [f.strip() for f in (arguments.formats or "").split(",") if f.strip()]
    if unknown := set(formats) - set(get_args(recipe.Format)):
        raise UserError(f"--formats has {', '.join(sorted(unknown))}; choose of {', '.join(get_args(recipe.Format))}.")
    save = {k: v for k, v in (("precision", arguments.precision), ("metadata", arguments.metadata)) if v}
    job = importlib.import_module("tuner.jobs")
    wanted = job.Export(arguments.path, tuple(formats), save, arguments.out, arguments.family, arguments.model)
    return job.export(wanted, arguments.job)


def publish(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    job = importlib.import_module("tuner.publish")
    wanted = job.Request(
        arguments.path, arguments.repo, arguments.private, arguments.message, arguments.update, arguments.files
    )
    return job.main(wanted, arguments.job, arguments.dry_run)


def describe(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    catalog = importlib.import_module("tuner.catalog")
    text = catalog.markdown() if arguments.markdown else json.dumps(catalog.describe(), indent=1, ensure_ascii=False)
    sys.stdout.write(text + "\n")
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    wanted = recipe.load(package_recipes() / "demo" / "style-lora.yaml")
    return importlib.import_module("tuner.demo").main(wanted, arguments.out or new_folder("demo"))


def app(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    path = Path(__file__).resolve().parent.parent / "app.py"
    os.execv(sys.executable, [sys.executable, str(path), *arguments.arguments])


if __name__ == "__main__":
    sys.exit(main())
