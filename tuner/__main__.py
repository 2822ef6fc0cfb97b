"""`python -m tuner`: run, resume, check, cache, caption, sample, describe, demo and app.

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
from typing import Any, NoReturn

from . import __version__, recipe
from .errors import Problem, UserError
from .home import package_recipes, runs_folder


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

    def with_recipe(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("recipe", type=Path, help="a recipe file (YAML)")
        sub.add_argument(
            "overrides", nargs="*", metavar="key=value", help="for example train.steps=50 data.0.path=/pictures"
        )

    sub = command("demo", demo, "Train a style LoRA on the embedded model, and show what it learnt.")
    sub.add_argument("--out", type=Path, help="run folder (default: a new one in the workspace)")
    sub = command("run", run, "Train as a recipe says.")
    with_recipe(sub)
    sub.add_argument("--out", type=Path, help="run folder (default: a new one in the workspace)")
    sub = command("resume", resume, "Go on with a run from its newest checkpoint.")
    sub.add_argument("folder", type=Path)
    sub = command("check", check, "Show the plan of a recipe and everything that is wrong with it, without training.")
    with_recipe(sub)
    sub = command("cache", cache, "Encode pictures and captions ahead of a run.")
    with_recipe(sub)
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
    sub.add_argument("--job", type=Path, help="folder of the journal (default: a new one in the workspace)")
    sub = command("sample", sample, "Draw pictures with a base model and adapters side by side.")
    sub.add_argument("request", type=Path, help="a request file (YAML)")
    sub.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    sub = command("describe", describe, "List families, techniques and settings.")
    sub.add_argument("--markdown", action="store_true", help="the tables of the README")
    sub.add_argument("--json", action="store_true", help="JSON (the default)")
    sub = command("app", app, "Start the studio in the browser; further arguments go to app.py.")
    sub.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


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
    return importlib.import_module("tuner.run").resume(arguments.folder)


def check(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    try:
        assemble = importlib.import_module("tuner.assemble")
        report = assemble.report(assemble.prepare(_load(arguments)))
    except UserError as error:
        problems = [Problem("error", "", line).as_dict() for line in str(error).splitlines()]
        report = {"ok": False, "problems": problems, "plan": None, "device": None}
    sys.stdout.write(_plain(report) if sys.stdout.isatty() else json.dumps(report, ensure_ascii=False) + "\n")
    return 0 if report["ok"] else 1


def _plain(report: dict[str, Any]) -> str:
    marks = {"error": "STOP", "warning": "look", "note": "note"}
    lines = [f"{marks[p['level']]}  {p['text']}" for p in report["problems"]]
    if plan := report["plan"]:
        sizes = ", ".join(f"{b['items']} x {b['width']}x{b['height']}" for b in plan["buckets"])
        lines.append(f"{plan['items']} pictures in {len(plan['buckets'])} bucket(s): {sizes}")
        lines.append(f"{plan['steps_per_epoch']} steps see every picture once; the run does so {plan['epochs']} times")
        lines.append(f"Device: {report['device']['name']}; {report['device']['reason']}")
    lines.append("Ready to run." if report["ok"] else "Not ready: put right what says STOP.")
    return "\n".join(lines) + "\n"


def cache(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    job = importlib.import_module("tuner.jobs")
    return job.cache(_load(arguments))


def caption(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    job = importlib.import_module("tuner.caption.job")
    asked = job.Asked(arguments.purpose, arguments.trigger, arguments.max_tokens)
    wanted = job.Request(
        arguments.path, arguments.model, asked, arguments.batch, arguments.overwrite_auto, arguments.out
    )
    return job.main(wanted, arguments.job)


def sample(arguments: argparse.Namespace) -> int:
    """See the command's help."""
    job = importlib.import_module("tuner.jobs")
    return job.sample(arguments.request, arguments.out)


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
