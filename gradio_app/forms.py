"""The recipe's JSON schema -> the fields of a form -> values. A setting added to the recipe appears by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import yaml

from tuner.recipe import Recipe

from .parts.words import title

Schema = dict[str, Any]
GROUPS = {
    "adapter": "Adapter",
    "media": "Sizes",
    "train": "Training",
    "memory": "Memory",
    "validate": "Samples",
    "save": "Saves",
    "options": "This family",
    "assistants": "Assistants",
}
ELSEWHERE = {"version", "family", "data", "description", "options", "extensions", "task"}
CHANGE = "the form shows the right settings after this choice"


@dataclass(frozen=True)
class Field:
    """One setting as a form shows it. `kind` is how it is typed in; `empty` whether nothing is allowed.

    kind `group`: an optional group that is there or not; its own fields follow when it is. kind `list`: a list of
    groups, shown as how many there are; their fields follow, as `assistants.0.path`.
    """

    key: str
    label: str
    kind: str
    level: str
    description: str
    default: Any = None
    empty: bool = False
    choices: list[str] = field(default_factory=list)
    low: float | None = None
    high: float | None = None
    above: bool = False
    """Whether the lowest value itself is too low."""

    @property
    def group(self) -> str:
        """Under which heading it stands."""
        return GROUPS.get(self.key.split(".")[0], "Recipe")


@lru_cache(maxsize=1)
def _schema() -> Schema:
    """Made once: it takes a tenth of a second."""
    return Recipe.model_json_schema(by_alias=True)


def fields(values: dict[str, Any], schema: Schema | None = None, options: Schema | None = None) -> list[Field]:
    """All fields of a recipe with these values: where a `kind` decides, only the fields of the chosen kind.

    options: the schema of the family's own settings; without it they are typed as YAML.
    """
    schema = schema or _schema()
    found = list(_walk(schema, schema.get("$defs", {}), values, ""))
    own = _options(values, options)
    extra = [
        *own,
        Field("extensions", "Techniques", "yaml", "advanced", "In the order in which they act, as YAML", []),
        Field(
            "data",
            "Data sets",
            "yaml",
            "expert",
            "All data sets of the run, as YAML; the first is the one chosen above",
            [],
        ),
        Field("task", "Task", "text", "advanced", "What the model is trained to do", "generate"),
    ]
    return found + extra


def show(setting: Field, value: Any) -> Any:
    """A value as the form shows it: text, or true/false."""
    if setting.kind == "yaml":
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).strip() if value else ""
    if setting.kind == "bool":
        return bool(value)
    if setting.kind == "group":
        return value is not None
    if setting.kind == "list":
        return len(value or [])
    if value is None:
        return ""
    if setting.kind == "lines":
        return "\n".join(str(v) for v in value)
    if setting.kind in ("numbers", "words") and isinstance(value, list | tuple):
        text = ", ".join(str(v) for v in value)
        return f"{text}," if setting.kind == "words" and len(value) == 1 else text
    return _number_text(value) if isinstance(value, float) else str(value)


def read(setting: Field, shown: Any) -> Any:
    """A typed-in value as the recipe has it. What is no number stays text; the recipe's own check then says so."""
    if setting.kind == "bool":
        return bool(shown)
    if setting.kind == "group":
        return {} if shown else None
    if setting.kind == "list":
        return [{} for _ in range(int(shown or 0))]
    text = str(shown).strip()
    if setting.kind == "yaml":
        return _yaml(text, setting.default)
    if setting.kind == "lines":
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines or (None if setting.empty else [])
    if text == "" and (setting.empty or setting.kind in ("number", "numbers")):
        return None if setting.empty else setting.default
    if setting.kind == "numbers":
        return [_number(part) for part in text.replace("x", ",").replace("×", ",").split(",") if part.strip()]
    if setting.kind == "words":
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return parts if "," in text else text
    return _number(text) if setting.kind in ("number", "mixed") else text


def get(values: dict[str, Any], key: str, default: Any = None) -> Any:
    """The value at a dotted key."""
    here: Any = values
    for part in key.split("."):
        if isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
            continue
        if not isinstance(here, dict) or part not in here:
            return default
        here = here[part]
    return here


def described(setting: Field, values: dict[str, Any], standard: dict[str, Any]) -> dict[str, Any]:
    """A field for the page: what it is, what it holds, and whether that differs from the recipe's own value."""
    value, own = get(values, setting.key, setting.default), get(standard, setting.key, setting.default)
    out = {k: v for k, v in asdict(setting).items() if k != "default"}
    out |= {"value": show(setting, value), "own": show(setting, own), "changed": value != own}
    return out | {"group": setting.group}


def collect(found: list[Field], shown: dict[str, Any]) -> dict[str, Any]:
    """Form values back into a nested recipe dict."""
    result: dict[str, Any] = {}
    for setting in found:
        here = result
        *groups, last = setting.key.split(".")
        if last == "kind" and read(setting, shown[setting.key]) is None:
            groups, last = groups[:-1], groups[-1]
        for part in groups:
            here = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
        here[last] = read(setting, shown[setting.key])
    return result


def _walk(schema: Schema, defs: dict[str, Schema], values: dict[str, Any], prefix: str) -> Iterator[Field]:
    for name, raw in schema.get("properties", {}).items():
        if not prefix and name in ELSEWHERE:
            continue
        key, here = f"{prefix}{name}", values.get(name) if isinstance(values, dict) else None
        if "const" in raw:
            continue
        inner, optional = _resolve(raw, defs)
        union = inner.get("oneOf")
        if union is not None:
            yield from _union(key, raw, inner, optional, defs, here)
        elif "properties" in inner:
            if optional and prefix:
                yield Field(key, label(key), "group", raw.get("level", "advanced"), raw.get("description", ""), None)
            if not optional or here is not None:
                yield from _walk(inner, defs, here or {}, f"{key}.")
        elif item := _item(inner, defs):
            yield Field(key, label(key), "list", raw.get("level", "advanced"), raw.get("description", ""), [])
            for i, one in enumerate(here if isinstance(here, list) else []):
                yield from _walk(item, defs, one, f"{key}.{i}.")
        else:
            yield _field(key, raw, optional)


def label(key: str) -> str:
    """What a setting is called: members of a list and of a group inside a group say where they belong."""
    parts = key.split(".")
    if len(parts) < 3:
        return title(parts[-1])
    inside = " ".join(str(int(p) + 1) if p.isdigit() else p for p in (parts if parts[1].isdigit() else parts[1:])[:-1])
    return f"{title(inside)}: {title(parts[-1]).lower()}"


def fresh(key: str, place: int) -> dict[str, Any]:
    """A new member of a list of groups: what it must have, empty, for the user to fill in."""
    schema = Recipe.model_json_schema(by_alias=True)
    here: Schema | None = schema
    for part in key.split("."):
        inner = _resolve((here or {}).get("properties", {}).get(part, {}), schema["$defs"])[0] if here else {}
        here = here if part.isdigit() else (_item(inner, schema["$defs"]) or inner)
    made = dict.fromkeys((here or {}).get("required", []), "")
    return made | ({"label": f"sweep {place + 1}"} if "label" in made else {})


def _item(schema: Schema, defs: dict[str, Schema]) -> Schema | None:
    """The schema of a list's members, where these are groups of settings."""
    if schema.get("type") != "array":
        return None
    inner = _resolve(schema.get("items") or {}, defs)[0]
    return inner if "properties" in inner else None


def _options(values: dict[str, Any], schema: Schema | None) -> list[Field]:
    """The family's own settings: fields when its schema is known and covers what is set, else YAML."""
    set_here = values.get("options") or {}
    known = (schema or {}).get("properties", {})
    if schema is None or set(set_here) - set(known):
        text = "Settings that only this family has, as YAML"
        return [Field("options", "Options of the family", "yaml", "advanced", text, {})]
    return list(_walk(schema, schema.get("$defs", {}), set_here, "options."))


def _union(key: str, raw: Schema, inner: Schema, optional: bool, defs: dict[str, Schema], here: Any) -> Iterator[Field]:
    """A choice of kinds, then the fields of the chosen one."""
    mapping = inner["discriminator"]["mapping"]
    level = raw.get("level", "advanced")
    text = raw.get("description") or f"Kind of {title(key.split('.')[-1]).lower()}; {CHANGE}"
    choices = ([""] if optional else []) + sorted(mapping)
    default = None if optional else (raw.get("default") or {}).get("kind")
    yield Field(f"{key}.kind", label(key), "choice", level, text, default, optional, choices)
    kind = here.get("kind") if isinstance(here, dict) else None
    if kind in mapping:
        chosen = defs[mapping[kind].rsplit("/", 1)[-1]]
        yield from _walk(chosen, defs, here, f"{key}.")


def _resolve(raw: Schema, defs: dict[str, Schema]) -> tuple[Schema, bool]:
    """Follow a reference, through `... | None`. Says whether nothing is allowed."""
    if "$ref" in raw:
        return defs[raw["$ref"].rsplit("/", 1)[-1]], False
    options = raw.get("anyOf")
    if options is None:
        return raw, False
    real = [o for o in options if o.get("type") != "null"]
    if len(real) == 1:
        return _resolve(real[0], defs)[0], len(options) > 1
    return raw, len(real) < len(options)


def _field(key: str, raw: Schema, optional: bool) -> Field:
    options = [o for o in raw.get("anyOf", [raw]) if o.get("type") != "null"]
    first = options[0]
    limits = {**raw, **first}
    choices = [str(v) for v in first.get("enum", [])]
    return Field(
        key=key,
        label=label(key),
        kind=_kind(options),
        level=raw.get("level", "advanced"),
        description=raw.get("description", ""),
        default=raw.get("default"),
        empty=optional,
        choices=([""] if optional and choices else []) + choices,
        low=limits.get("minimum", limits.get("exclusiveMinimum")),
        high=limits.get("maximum", limits.get("exclusiveMaximum")),
        above="exclusiveMinimum" in limits,
    )


def _kind(options: list[Schema]) -> str:
    """How a value of this type is typed in."""
    if len(options) > 1:
        return "words" if any(o.get("type") == "array" for o in options) else "mixed"
    only = options[0]
    if "enum" in only:
        return "choice"
    if only.get("type") == "array":
        items = only.get("items") or (only.get("prefixItems") or [{}])[0]
        return "numbers" if items.get("type") in ("integer", "number") else "lines"
    known = {"integer": "number", "number": "number", "boolean": "bool", "string": "text"}
    return known.get(only.get("type", ""), "yaml")


def _number(text: str) -> Any:
    text = text.strip()
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _number_text(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _yaml(text: str, default: Any) -> Any:
    """What was typed as YAML; text that is none, or that uses aliases (few lines may mean billions), stays text."""
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            return text
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return text
    return default if found is None else found
