"""A blind test of two contenders: pairs in a drawn order, ten choices kept on disk, and how sure the result is."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
from math import comb
from pathlib import Path
from typing import Any

from .workspace import write_json

ROUNDS = 10


def start(folder: Path, pair: tuple[int, int], rows: list[int], draw: random.Random | None = None) -> None:
    """Deal ten pairs: every row once before any comes again, left and right drawn each time."""
    draw = draw or random.SystemRandom()
    order: list[int] = []
    while len(order) < ROUNDS:
        order += draw.sample(rows, len(rows))
    dealt = [[row, draw.random() < 0.5] for row in order[:ROUNDS]]
    shutil.rmtree(folder / "blind", ignore_errors=True)
    write_json(folder / "blind.json", {"pair": list(pair), "rows": len(rows), "dealt": dealt, "votes": []})


def veiled(folder: Path, number: int, files: list[str]) -> list[str]:
    """The left and the right file of a pair under names that tell nothing: links that last until the test is put away.

    files: in the order in which they stand on the screen.
    """
    test, place = read(folder), folder / "blind"
    if test is None:
        return files
    known = test.setdefault("names", {})
    if str(number) not in known:
        place.mkdir(exist_ok=True)
        known[str(number)] = [_link(Path(file), place) for file in files]
        write_json(folder / "blind.json", test)
    return [str(place / name) for name in known[str(number)]]


def _link(file: Path, place: Path) -> str:
    name = secrets.token_hex(12) + file.suffix
    try:
        os.link(file, place / name)
    except OSError:  # a disk without links
        shutil.copyfile(file, place / name)
    return name


def vote(folder: Path, number: int, side: str) -> None:
    """Write down a choice; one for a pair that is not the one on the screen (a double press) is not counted."""
    test = read(folder)
    if test is None or side not in ("left", "right") or number != len(test["votes"]) or number >= ROUNDS:
        return
    swapped = test["dealt"][number][1]
    test["votes"].append(int((side == "right") != swapped))
    write_json(folder / "blind.json", test)


def end(folder: Path) -> None:
    """Put the test away; finished ones stay in the list of results."""
    test = read(folder)
    if test is not None and len(test["votes"]) >= ROUNDS:
        done = json.loads(_text(folder / "blind-results.json") or "[]")
        write_json(folder / "blind-results.json", [*done, test])
    (folder / "blind.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "blind", ignore_errors=True)


def read(folder: Path) -> dict[str, Any] | None:
    """The test that goes on, if any."""
    try:
        return json.loads(_text(folder / "blind.json") or "null")
    except ValueError:
        return None


def chance(wins: int, of: int) -> float:
    """How often pure guessing gives a result at least this lopsided (two-sided binomial test at one half)."""
    far = max(wins, of - wins)
    return min(1.0, 2 * sum(comb(of, k) for k in range(far, of + 1)) / 2**of)


def verdict(test: dict[str, Any], labels: list[str]) -> str:
    """The result in plain words."""
    votes = test["votes"]
    second = sum(votes)
    wins, name = max((len(votes) - second, labels[0]), (second, labels[1]))
    odds = 100 * chance(wins, len(votes))
    often = f"about {odds:.0f} times in 100" if odds >= 1 else f"about {odds * 10:.0f} times in 1,000"
    if wins * 2 == len(votes):
        text = "Five to five: no preference."
    elif odds <= 5:
        text = f"You chose {name} {wins} of {len(votes)} times. Guessing does as well only {often}: fairly sure."
    else:
        text = (
            f"You chose {name} {wins} of {len(votes)} times. Guessing does as well {often}: not sure, it may be chance."
        )
    if test["rows"] < ROUNDS:
        seen = f"{test['rows']} different pairs were" if test["rows"] > 1 else "one pair was"
        text += f" Only {seen} shown, some several times; more prompts or seeds say more."
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
