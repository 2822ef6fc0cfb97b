"""Which texts of the interface have no translation yet: `python .ci/words.py [missing LANGUAGE | add LANGUAGE FILE]`.

Without arguments: the shares translated, by language and kind of text. `missing` prints what lacks as JSON, with empty
values; fill them in and give the file to `add`. Texts are found by reading the sources: every sentence and label in
`gradio_app`, the recipe's schema, and what the engine says of a recipe or a data set.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gradio_app import forms, words  # noqa: E402

HOLE = re.compile(r"\{\*?\w+\}")
# Files of the app whose texts no reader of the page sees, or sees before the page is there.
ELSEWHERE = {"api.py", "door.py", "notebook.py", "theme.py", "names.py", "widget.py", "workspace.py", "catalog.py"}
UNTOLD = ("class", "type", "role", "id", "d", "style", "viewBox", "accept", "rel", "href", "points", "transform", "tag")
# Names, units and signs that are the same in every language, and texts that nobody is shown.
SAME = {line.strip() for line in (words.HERE / "same.txt").read_text(encoding="utf-8").splitlines() if line.strip()}


def shape(text: str) -> str:
    """A text with its values left unnamed: how a source and a catalogue's key are compared."""
    return HOLE.sub("{}", text).strip()


def telling(text: str) -> bool:
    """Whether a string of the source looks like words for a reader: a phrase, or one word with a capital."""
    bare = HOLE.sub(" ", text).strip()
    if re.search(r"[<>\\=_]|\bt-|^[-./#?&%]|^\W*$|://|--|\w\(|^\w+;|;$|\{\{", bare) and not re.search(
        r"[a-z] [a-z]+ [a-z]", bare
    ):
        return False
    if re.search(r"\bt-[a-z]|</?[a-z]+|\\[dwsWSn]|^--", text):
        return False
    return bool(re.search(r"[A-Za-z]{2,}\W* +\W*[A-Za-z]", bare) or re.fullmatch(r"\W*[A-Z][a-z]+[-\w]*\W*", bare))


# -- Python ------------------------------------------------------------------------------------------------------------


def spelled(node: ast.AST) -> list[str] | None:
    """The texts that an expression may be, values as `{name}`; nothing for what is no text."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return ["".join(bits) for bits in itertools.product(*(_part(value) for value in node.values))]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = spelled(node.left), spelled(node.right)
        if left is None and right is None:
            return None
        return [a + b for a in left or ["{" + _name(node.left) + "}"] for b in right or ["{" + _name(node.right) + "}"]]
    if isinstance(node, ast.IfExp):
        either = [spelled(node.body), spelled(node.orelse)]
        return [text for found in either for text in found or []] if all(e is not None for e in either) else None
    return None


def _part(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FormattedValue):
        return spelled(node.value) or ["{" + _name(node.value) + "}"]
    return spelled(node) or [""]


def _name(node: ast.AST) -> str:
    """What to call a value: texts of our own helpers are translated in their turn."""
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "text")
        return f"*{name}" if name in ("count", "duration", "times", "_numbered", "per_step") else name.strip("_") or "x"
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return getattr(node, "attr", getattr(node, "id", "value"))


def python_texts(source: str) -> Iterator[str]:
    """Everything in a Python source that looks like words for a reader."""
    tree = ast.parse(source)
    inner: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner.add(node.value)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "count":
            yield from _counted(node)
        if node in inner:
            continue
        found = spelled(node)
        if found is None:
            continue
        inner.update(ast.walk(node))
        yield from found


def _counted(node: ast.Call) -> Iterator[str]:
    forms_ = [spelled(argument) for argument in node.args[1:]]
    for one in forms_[0] or []:
        yield f"{{n}} {one}"
        yield from [f"{{n}} {many}" for many in (forms_[1] or [] if len(forms_) > 1 else [f"{one}s"])]


# -- JavaScript --------------------------------------------------------------------------------------------------------

STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
CHOICE = re.compile(r'.+\?\s*"([^"]*)"\s*:\s*"([^"]*)"$', re.DOTALL)


def script_texts(source: str) -> Iterator[str]:
    """Everything in a script that looks like words for a reader; `${value}` becomes `{value}`."""
    at = 0
    while at < len(source):
        here = source[at]
        if source.startswith("//", at) and source[at - 1 : at] in ("", "\n", " "):
            at = source.find("\n", at) if "\n" in source[at:] else len(source)
        elif source.startswith("/*", at):
            at = source.find("*/", at) + 2
        elif here == '"' and (found := STRING.match(source, at)):
            if not _untold(source[max(0, at - 40) : at]):
                yield json.loads(found[0].replace("\\'", "'"))
            at = found.end()
        elif here == "`":
            at, told, inside = _template(source, at + 1)
            if not _untold(source[max(0, at - 40) : at]):
                yield from told
            for one in inside:
                yield from script_texts(one)
        else:
            at += 1


def _untold(before: str) -> bool:
    """Whether a string is the value of an attribute that nobody reads."""
    found = re.search(r'(?:^|[\s{,(])"?([\w-]+)"?:\s*$', before)
    return bool(found) and found[1] in UNTOLD


def _template(source: str, at: int) -> tuple[int, list[str], list[str]]:
    """From behind a backtick: where it ends, what it may say, and the code inside it."""
    bits: list[list[str]] = [[""]]
    inside: list[str] = []
    while source[at] != "`":
        if source.startswith("${", at):
            end = _closed(source, at + 2)
            code = source[at + 2 : end].strip()
            inside.append(code)
            choice = CHOICE.fullmatch(code)
            bits.append([choice[1], choice[2]] if choice else ["{" + _called(code) + "}"])
            at = end + 1
        else:
            bits.append([source[at]])
            at += 1
    return at + 1, ["".join(one) for one in itertools.product(*bits)], inside


def _closed(source: str, at: int) -> int:
    deep = 1
    while deep:
        if source[at] == "`":
            at = _template(source, at + 1)[0]
            continue
        deep += {"{": 1, "}": -1}.get(source[at], 0)
        at += 1
    return at - 1


def _called(code: str) -> str:
    names = re.findall(r"[A-Za-z_]\w*", re.sub(r"\([^()]*\)|\[[^\]]*\]", "", code))
    return "n" if "length" in names else (names or ["value"])[-1]


# -- all texts ---------------------------------------------------------------------------------------------------------


def app() -> set[str]:
    """Every text of the app's own sources."""
    found: set[str] = set()
    for path in sorted((ROOT / "gradio_app").rglob("*")):
        source = (
            path.read_text(encoding="utf-8") if path.suffix in (".py", ".js") and path.name not in ELSEWHERE else ""
        )
        found |= set(python_texts(source) if path.suffix == ".py" else script_texts(source))
    return {text.strip() for text in found if telling(text)} - SAME


def settings() -> set[str]:
    """Labels and sentences of all settings that the recipe's schema has, of every kind."""
    schema = forms.Recipe.model_json_schema(by_alias=True)
    found: set[str] = set(forms.GROUPS.values())
    for name, one in [("", schema), *schema["$defs"].items()]:
        for key, field in one.get("properties", {}).items():
            if "const" in field or (not name and key in forms.ELSEWHERE):
                continue
            found.add(forms.title(key))
            found |= {field["description"]} if field.get("description") else set()
    return found - SAME


def engine() -> set[str]:
    """What the engine says of a recipe, a data set or a run: problems, findings, errors."""
    found: set[str] = set()
    for path in sorted((ROOT / "tuner").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Problem", "Finding", "UserError"):
                texts = [text for argument in node.args for text in spelled(argument) or []]
                found |= {text.strip() for text in texts if telling(text) and " " in text}
    return found - SAME


def everything() -> str:
    """All strings of all sources and the settings' texts, one a line: to see whether a text is still there."""
    found = set(settings()) | SAME
    for path in sorted([*(ROOT / "gradio_app").rglob("*.py"), *(ROOT / "tuner").rglob("*.py")]):
        found |= set(python_texts(path.read_text(encoding="utf-8")))
    for path in sorted((ROOT / "gradio_app").rglob("*.js")):
        found |= set(script_texts(path.read_text(encoding="utf-8")))
    found |= {path.read_text(encoding="utf-8") for path in (ROOT / "recipes").glob("*/*.yaml")}
    return "\n".join(found)


KINDS = {"app": app, "settings": settings, "engine": engine}


def lacking(texts: Iterable[str], entries: dict[str, str]) -> list[str]:
    """Those that a catalogue does not cover, in order. A piece of a sentence is covered by the sentence."""
    known = {shape(key) for key in entries}
    whole = "\n".join(known)
    return sorted(t for t in texts if shape(t) not in known and not (_piece(t) and shape(t).strip("{} ") in whole))


def _piece(text: str) -> bool:
    """Whether a text is put together with others in the source: it begins or ends in the middle of a sentence."""
    label = re.fullmatch(r"[A-Z][a-z]+ \{\w*\}", text)  # "Delete {name}" stands alone
    return len(text.split()) > 1 and not label and not re.match(r"[A-Z{].*[.?!…]$", text)


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description="Texts of the interface and their translations.")
    parser.add_argument("do", nargs="?", choices=("shares", "missing", "add"), default="shares")
    parser.add_argument("language", nargs="?", choices=tuple(words.LANGUAGES))
    parser.add_argument("file", nargs="?", type=Path, help="JSON of source → translation, for `add`")
    parser.add_argument("--kind", choices=tuple(KINDS), help="only texts of this kind")
    asked = parser.parse_args()
    kinds = {name: make() for name, make in KINDS.items() if asked.kind in (None, name)}
    if asked.do == "add":
        told = json.loads(asked.file.read_text(encoding="utf-8"))
        _write(asked.language, {**words.catalogue(asked.language), **{k: v for k, v in told.items() if v}})
    elif asked.do == "missing":
        entries = words.catalogue(asked.language) if asked.language else {}
        left = sorted({text for texts in kinds.values() for text in lacking(texts, entries)})
        _say(json.dumps(dict.fromkeys(left, ""), ensure_ascii=False, indent=1))
    else:
        for language, (name, texts) in itertools.product(words.LANGUAGES, kinds.items()):
            left = len(lacking(texts, words.catalogue(language)))
            _say(f"{language}  {name:9} {len(texts) - left} of {len(texts)} ({1 - left / len(texts):.0%})")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _write(language: str, entries: dict[str, Any]) -> None:
    text = json.dumps(dict(sorted(entries.items())), ensure_ascii=False, indent=1)
    (words.HERE / f"{language}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
