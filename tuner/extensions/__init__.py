"""One file per technique. A file is loaded when a recipe names its kind, or all of them for the catalogue."""

from __future__ import annotations

import importlib
import pkgutil

from pydantic import ValidationError

from ..errors import UserError
from ..extension import EXTENSIONS, Extension
from ..recipe import ExtensionSpec, explain


def names() -> list[str]:
    """Every technique there is, by module name, without loading any."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(kind: str) -> type[Extension]:
    """The class of one technique; loads only its module. Raises `UserError` for an unknown kind."""
    if kind not in names():
        raise UserError(f"extensions: kind {kind!r} is not one of {', '.join(names())}; change it or remove the entry.")
    importlib.import_module(f"{__name__}.{kind}")
    return EXTENSIONS[kind]


def build(spec: ExtensionSpec, place: int = 0) -> Extension:
    """An extension with its settings checked. Raises `UserError` with the dotted key of the mistake."""
    cls = get(spec.kind)
    try:
        return cls(cls.Settings.model_validate(spec.settings()))
    except ValidationError as error:
        sentences = explain(error, "recipe", f"extensions.{place}.", cls.Settings)
        raise UserError("\n".join(sentences)) from None
