"""What of a view a page is sent."""

from __future__ import annotations

from gradio_app.parts.since import since


def shown(captions: list[str], **more: object) -> dict:
    items = [{"id": f"p{i}", "caption": text} for i, text in enumerate(captions)]
    return {
        "name": "mine",
        "items": items,
        "counts": {"all": len(items)},
        "told": {"at": 0.0},
        "preview": {},
        **more,
    }


def test_a_page_is_sent_what_changed_and_nothing_else() -> None:
    first, known = since({}, shown(["a", "b", "c"]))
    assert "patch" not in first and len(first["items"]) == 3, "a page that knows nothing is sent all"
    same, known = since(known, shown(["a", "b", "c"]))
    said = {"told": {"at": 0.0}, "preview": {}}
    assert same == {"patch": True, "name": "mine", "items": [], **said}
    one, known = since(known, shown(["a", "B", "c"], told={"at": 1.0, "note": "Saved."}))
    assert one == {**same, "items": [{"id": "p1", "caption": "B"}], "told": {"at": 1.0, "note": "Saved."}}
    less, known = since(known, shown(["a", "B"]))
    assert less == {**same, "order": ["p0", "p1"], "counts": {"all": 2}}
    back, known = since(known, shown(["a", "B", "c"]))
    assert back["items"] == [{"id": "p2", "caption": "c"}], "what was taken away has to be sent again"
    other, _ = since(known, {**shown(["a", "B", "c"]), "name": "yours"})
    assert "patch" not in other
