"""What the studio can do, as data: for the app's forms, the README's tables, and scripts."""

from __future__ import annotations

from typing import Any

from . import __version__, adapters, extensions, families
from .adapters import Kind
from .extension import Extension
from .family import Family
from .recipe import Recipe


def describe() -> dict[str, Any]:
    """Families, ways of training, techniques and the recipe's schema as plain values."""
    refused = {name: adapters.refused(families.get(name)()) for name in families.names()}
    return {
        "version": __version__,
        "families": [_family(families.get(name)) for name in families.names()],
        "adapters": [_adapter(kind, about, refused) for kind, about in adapters.KINDS.items()],
        "extensions": [_extension(extensions.get(kind)) for kind in extensions.names()],
        "recipe": Recipe.model_json_schema(by_alias=True),
    }


def _family(cls: type[Family]) -> dict[str, Any]:
    return {
        "name": cls.name,
        "title": cls.title,
        "modality": cls.modality,
        "tasks": list(cls.pipelines),
        "sources": cls.sources,
        "resolution": cls.resolution,
        "guidance": cls.guidance,
        "targets": list(cls.targets),
        "licence": cls.licence,
        "size": cls.size,
        "predicts": cls.predicts,
        "timesteps": cls.timesteps.model_dump(),
        "encoders": cls.encoders,
        "trains_text": list(cls.trainable_text),
        "options": cls.Options.model_json_schema(),
    }


def _adapter(kind: str, about: Kind, refused: dict[str, dict[tuple[str, str], str]]) -> dict[str, Any]:
    """refused: family → {(kind, variant): reason}."""

    def by_family(title: str) -> dict[str, str]:
        return {f: reasons[kind, title] for f, reasons in refused.items() if (kind, title) in reasons}

    return {
        "kind": kind,
        "title": about.title,
        "description": (about.settings.__doc__ or "").strip().splitlines()[0],
        "schema": about.settings.model_json_schema(),
        "refused": by_family(""),
        "variants": [
            {"title": title, "settings": settings, "refused": by_family(title)}
            for title, settings in about.variants.items()
        ],
    }


def _extension(cls: type[Extension]) -> dict[str, Any]:
    return {
        "kind": cls.kind,
        "title": cls.title,
        "description": (cls.__doc__ or "").strip().splitlines()[0],
        "conflicts": sorted(cls.conflicts),
        "schema": cls.Settings.model_json_schema(),
    }


MODALITIES = ("image", "video", "audio")


def markdown() -> str:
    """The README's tables."""
    data = describe()
    head = "| family | model | size | tasks | answers | text encoders | adapters | made for | licence |"
    lines = [head, "|---" * 9 + "|"]
    for f in sorted(data["families"], key=lambda f: (MODALITIES.index(f["modality"]), f["name"])):
        tasks, presets = ", ".join(t.replace("_", " ") for t in f["tasks"]), ", ".join(f["targets"])
        size = f"{f['resolution']} px" if f["resolution"] else f["modality"]
        kind = "" if f["modality"] == "image" else f" ({f['modality']})"
        lines.append(
            f"| `{f['name']}` | {f['title']}{kind} | {f['size']} | {tasks} | {f['predicts']} | {f['encoders']} "
            f"| LoRA ({presets}), full | {size} | {f['licence']} |"
        )
    lines += ["", "| technique | what it does | settings |", "|---|---|---|"]
    for e in data["extensions"]:
        names = ", ".join(f"`{name}`" for name in e["schema"].get("properties", {}))
        lines.append(f"| `{e['kind']}` | {e['description']} | {names} |")
    return "\n".join(lines)
