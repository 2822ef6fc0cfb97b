"""What the studio can do, as data: for the app's forms, the README's tables, and scripts."""

from __future__ import annotations

from typing import Any

from . import __version__, adapters, export, extensions, families
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
        "formats": _formats(cls),
        "no_formats": {f: why for f in ("comfyui", "kohya") if (why := export.refused(cls.names, f))},
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


def _controls(cls: type[Family], refused: bool) -> str:
    """Which forms of ControlNet a family has."""
    return "–" if refused or cls.control is None else ", ".join(cls.control.forms)


def _formats(cls: type[Family]) -> list[str]:
    """The adapter files of a family that are written and checked."""
    return ["diffusers", *(f for f in ("comfyui", "kohya") if not export.refused(cls.names, f))]


def markdown() -> str:
    """The README's tables."""
    data = describe()
    head = (
        "| family | model | size | tasks | answers | text encoders | layers | ControlNet | text trains | files "
        "| made for | licence |"
    )
    lines = [head, "|---" * 12 + "|"]
    control = next(a for a in data["adapters"] if a["kind"] == "controlnet")
    for f in sorted(data["families"], key=lambda f: (MODALITIES.index(f["modality"]), f["name"])):
        tasks, presets = ", ".join(t.replace("_", " ") for t in f["tasks"]), ", ".join(f["targets"])
        size = f"{f['resolution']} px" if f["resolution"] else f["modality"]
        kind = "" if f["modality"] == "image" else f" ({f['modality']})"
        looks = _controls(families.get(f["name"]), f["name"] in control["refused"])
        lines.append(
            f"| `{f['name']}` | {f['title']}{kind} | {f['size']} | {tasks} | {f['predicts']} | {f['encoders']} "
            f"| {presets} | {looks} | {'CLIP' if f['trains_text'] else '–'} | {', '.join(f['formats'])} | {size} "
            f"| {f['licence']} |"
        )
    lines += ["", "| way of training | what it is | forms |", "|---|---|---|"]
    for a in data["adapters"]:
        names = ", ".join(v["title"] for v in a["variants"]) or "–"
        lines.append(f"| {a['title']} (`{a['kind']}`) | {a['description']} | {names} |")
    lines += ["", "| technique | what it does | settings |", "|---|---|---|"]
    for e in data["extensions"]:
        names = ", ".join(f"`{name}`" for name in e["schema"].get("properties", {}))
        lines.append(f"| `{e['kind']}` | {e['description']} | {names} |")
    return "\n".join(lines)
