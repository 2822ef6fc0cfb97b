"""One file per model family. A file is loaded when a recipe names its family, or all of them for the catalogue."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from pydantic import ValidationError

from ..errors import UserError
from ..family import FAMILIES, Family
from ..recipe import explain


def names() -> list[str]:
    """Every family there is, by module name, without loading any."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> type[Family]:
    """The class of one family; loads only its module. Raises `UserError` for an unknown name."""
    if name not in names():
        raise UserError(f"family is {name!r}, which is not one of {', '.join(names())}; change `family`.")
    importlib.import_module(f"{__name__}.{name}")
    return FAMILIES[name]


def build(name: str, options: dict[str, Any], task: str = "generate") -> Family:
    """A family for a task, options checked; loads only its module. Raises `UserError` with the key of the mistake."""
    cls = get(name)
    if task not in cls.pipelines:
        raise UserError(f"task is {task!r}, but {name} trains {', '.join(cls.pipelines)}; change `task`.")
    try:
        return cls(cls.Options.model_validate(options), task)
    except ValidationError as error:
        raise UserError("\n".join(explain(error, name, "options.", cls.Options))) from None
