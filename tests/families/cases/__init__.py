"""One file per family: its tiny checkpoints and what is particular about its official pipeline. All are found here."""

from __future__ import annotations

import importlib
import pkgutil

from tests.families.case import Case


def all_cases() -> dict[str, Case]:
    """Every case there is, by name; one instance each."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    found: dict[str, Case] = {}
    todo = list(Case.__subclasses__())
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        if "name" in cls.__dict__:
            assert cls.name not in found, cls.name
            found[cls.name] = cls()
    return dict(sorted(found.items()))
