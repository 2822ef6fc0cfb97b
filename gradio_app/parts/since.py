"""What of a view a page does not know yet: a change of one card among hundreds sends that card, not all of them."""

from __future__ import annotations

import json
from typing import Any

from .checks import digest

SAID = ("note", "undo", "preview", "look", "keep")
"""Parts that are an answer to one press: always sent with it."""
Marks = dict[str, str]
"""What a page has been sent: a digest of each part and of each item."""


def since(known: Marks, shown: dict[str, Any]) -> tuple[dict[str, Any], Marks]:
    """The view as a patch for a page that was sent `known`, and what it then knows.

    shown: has "name" and "items", each with an "id". A patch has `patch`, `name`, the changed items, `order` (all ids)
    where items came, went or moved, and each other part that changed. Another name makes it the whole view.
    """
    marks = {f"part {key}": _mark(value) for key, value in shown.items() if key not in (*SAID, "items")}
    marks |= {f"item {item['id']}": _mark(item) for item in shown["items"]}
    order = [item["id"] for item in shown["items"]]
    marks["order"] = _mark(order)
    if known.get("part name") != marks["part name"]:
        return shown, marks
    patch = {key: value for key, value in shown.items() if key in SAID or _differs(known, marks, f"part {key}")}
    patch["items"] = [item for item in shown["items"] if _differs(known, marks, f"item {item['id']}")]
    if _differs(known, marks, "order"):
        patch["order"] = order
    return {**patch, "patch": True, "name": shown["name"]}, marks


def _differs(known: Marks, marks: Marks, key: str) -> bool:
    return key in marks and known.get(key) != marks[key]


def _mark(value: Any) -> str:
    return digest(json.dumps(value, default=str), "")[:12]
