"""The two things we tell a user who must act: an error that stops, and a problem that `tuner check` lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


class UserError(Exception):
    """Something the user can put right. The message is plain, names the setting or file, and says the way out.

    `remedy` maps recipe keys to values that solve it, where these are known.
    """

    def __init__(self, message: str, remedy: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.remedy = dict(remedy or {})


@dataclass(frozen=True)
class Problem:
    """One finding about a recipe or a data set.

    `level` is "error" (the run would stop), "warning" (it runs, but look) or "note" (what we did and why).
    `where` is a dotted recipe key ("train.lr") or a file path. `remedy` maps recipe keys to values that solve it.
    """

    level: Literal["error", "warning", "note"]
    where: str
    text: str
    remedy: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The problem as plain JSON values."""
        return asdict(self)


def stop_on_errors(problems: Iterable[Problem], shown: int = 5) -> None:
    """Raise one `UserError` with the first `shown` errors, if there are any; with the remedy, if each has one."""
    errors = [p for p in problems if p.level == "error"]
    if not errors:
        return
    lines = [p.text for p in errors[:shown]]
    if len(errors) > shown:
        lines.append(f"... and {len(errors) - shown} more; `python -m tuner check RECIPE` lists all of them.")
    solved = all(p.remedy for p in errors)
    raise UserError("\n".join(lines), {k: v for p in errors for k, v in p.remedy.items()} if solved else None)
