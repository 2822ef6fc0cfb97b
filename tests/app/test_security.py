"""Hostile names, files and requests. Endpoints are found in the page itself, so that a new one is tried too."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gradio_app import archives
from gradio_app.archives import Refused, flat, unpack
from gradio_app.main import build
from gradio_app.parts.names import safe_file
from gradio_app.studio import Studio
from tests.app.helpers import ROOT, served

EVENTLESS = ("load", "then", "tick", "click", "select")  # events of Gradio itself, which carry nothing to handlers
SECRET = "canary-91c7-do-not-show"
MARKUP = "<img src=x onerror=window.hit=1><script>window.hit=1</script>${window.hit=1}{{value}}</textarea>"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that nobody may read or change through the app, beside the workspace."""
    folder = tmp_path_factory.mktemp("outside") / "private"
    folder.mkdir()
    for name in ("secret.txt", "secret.png", "recipe.yaml", "events.jsonl", "adapter.safetensors"):
        (folder / name).write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def address(outside: Path) -> Iterator[str]:
    """The app over a workspace next to those files, with the fake engine."""
    with served(outside.parent / "home", "0") as where:
        yield where


def hostile(outside: Path) -> list[str]:
    """Texts that mean a file elsewhere, or nothing good."""
    return [
        str(outside / "secret.txt"),
        str(outside),
        "../../private/secret.txt",
        "../../../private",
        "..\\..\\private\\secret.txt",
        "%2e%2e/%2e%2e/private/secret.txt",
        f"file://{outside}/secret.txt",
        f"demo/../../../private/{'x' * 300}",
        "..",
        "/",
        ".",
        "",
        "nul\0byte",
        MARKUP,
    ]


def shapes(text: str) -> list[Any]:
    """The kinds of value in which a text may come."""
    file = {"path": text, "orig_name": text, "name": text, "url": text, "meta": {"_type": "gradio.FileData"}}
    return [text, [file]]


def words() -> list[str]:
    """Every key that a handler of the app may look up in what a browser sends."""
    source = "\n".join(path.read_text() for path in (ROOT / "gradio_app").rglob("*.py"))
    return sorted(set(re.findall(r"""(?:\[|get\()["'](\w{2,30})["']""", source)))


def marks(folder: Path) -> dict[str, str]:
    """What lies in a folder."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_no_endpoint_reads_or_writes_outside(address: str, outside: Path, studio: Studio) -> None:
    """Each handler of the page and each public endpoint with each hostile text in each shape, in every key it reads."""
    before, keys, page = marks(outside.parent / "private"), words(), build(studio)
    tried = 0
    with httpx.Client(base_url=address, timeout=60) as web:
        for number, function in page.fns.items():
            takes_event = any(
                target[1] not in ("load", "then", "tick", "click", "select") for target in function.targets
            )
            for text in hostile(outside):
                if not takes_event and not function.inputs:
                    continue
                for value in shapes(text):
                    body = {
                        "fn_index": number,
                        "data": [value] * len(function.inputs),
                        "event_data": dict.fromkeys(keys, value),
                        "session_hash": "hostile",
                    }
                    answer = web.post("/gradio_api/run/predict", json=body)
                    assert answer.status_code in (200, 422, 500), (function.api_name, value, answer.text[:400])
                    assert SECRET not in answer.text, (function.api_name, value)
                    tried += 1
    assert tried > 2 * len(hostile(outside)) * 20
    assert marks(outside.parent / "private") == before
    assert sorted(p.name for p in outside.parent.iterdir() if not p.name.endswith(".log")) == ["home", "private"]
    inside = [p for p in (outside.parent / "home").rglob("*") if p.is_file() or p.is_symlink()]
    assert not [p for p in inside if p.is_symlink()]
    assert not [p for p in inside if SECRET.encode() in p.read_bytes()]


def paths_of(app: Any) -> list[str]:
    """The addresses of the app that have a part to fill in."""
    found: list[str] = []
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        found += paths_of(inner) if inner is not None else [getattr(route, "path", "")]
    return [path for path in found if "{" in path]


def test_no_address_shows_a_file_outside(address: str, outside: Path, studio: Studio) -> None:
    """Raw requests, for a client would tidy the dots away."""
    templates = paths_of(gr.routes.App.create_app(build(studio)))
    assert any("file" in path for path in templates) and len(templates) > 8
    line = http.client.HTTPConnection(address.split("/")[2], timeout=10)
    for template in templates:
        for text in hostile(outside):
            if "\0" in text or not text:
                continue
            filled = text.replace(" ", "%20").replace("<", "%3C")
            sent = re.sub(r"\{[^}]*\}", lambda _, filled=filled: filled, template)
            line.request("GET", sent if sent.startswith("/") else f"/{sent}")
            answer = line.getresponse()
            endless = "event-stream" in (answer.getheader("content-type") or "")
            body = "" if endless else answer.read(65536).decode("utf-8", "replace")
            assert SECRET not in body, sent
            line.close()


HOSTILE_NAMES = ["../../evil.png", "..\\evil.png", "/etc/evil.png", "CON.png", ".hidden.png", "e" * 300 + ".png"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_of_an_upload_stays_in_its_place(address: str, outside: Path, name: str) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "PNG")
    with httpx.Client(base_url=address, timeout=60) as web:
        answer = web.post("/gradio_api/upload", files={"files": (name, picture.getvalue())})
    assert answer.status_code == 200
    kept = Path(answer.json()[0])
    assert kept.resolve().is_relative_to(outside.parent / "home" / "cache" / "uploads") and len(kept.name) < 256
    assert re.fullmatch(r"[\w-][\w.-]{0,100}\.png", safe_file(name))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.html", b"<script>window.hit=1</script>"),
        ("page.png", b"<!doctype html><script>window.hit=1</script>"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>window.hit=1</script></svg>"),
        ("page.xhtml", b"<html xmlns='http://www.w3.org/1999/xhtml'><script>window.hit=1</script></html>"),
    ],
)
def test_a_page_or_script_that_was_uploaded_is_never_opened_as_one(address: str, name: str, content: bytes) -> None:
    with httpx.Client(base_url=address, timeout=60) as web:
        kept = web.post("/gradio_api/upload", files={"files": (name, content)}).json()[0]
        answer = web.get(f"/gradio_api/file={kept}")
    harmless = answer.headers["content-type"].split(";")[0] in ("image/png", "text/plain", "application/octet-stream")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert harmless or "attachment" in answer.headers.get("content-disposition", ""), dict(answer.headers)


def packed(path: Path, *files: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    """A zip with these files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return path


def test_a_zip_cannot_write_elsewhere(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    names = ["../../evil.png", "/evil.png", "a\\..\\..\\evil.png", "a/b.png", "__MACOSX/._b.png", ".hidden.png", "d/"]
    zipped = packed(tmp_path / "x.zip", (link, b"/etc/passwd"), *((name, b"x") for name in names))
    made = unpack(zipped, tmp_path / "room" / "deep")
    assert [name for _, name in made] == ["evil.png", "evil.png", "a-evil.png", "a-b.png"]
    assert all(path.parent == tmp_path / "room" / "deep" and not path.is_symlink() for path, _ in made)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["room", "x.zip"]


def test_a_zip_bomb_is_stopped_while_it_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = packed(tmp_path / "bomb.zip", ("big.png", bytes(64 << 20)))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(Refused, match=r"more than 0\.0 GB; make several smaller ones"):
        unpack(bomb, tmp_path / "a", 8 << 20)
    data = bomb.read_bytes()
    liar = tmp_path / "liar.zip"
    liar.write_bytes(data.replace(struct.pack("<L", 64 << 20), struct.pack("<L", 100)))
    with pytest.raises(Refused):
        unpack(liar, tmp_path / "b", 8 << 20)
    assert sum(p.stat().st_size for p in (tmp_path / "b").rglob("*")) <= 8 << 20
    with pytest.raises(Refused, match="more than"):
        monkeypatch.setattr(archives, "MOST_FILES", 10)
        unpack(packed(tmp_path / "many.zip", *((f"{i}.txt", b"") for i in range(11))), tmp_path / "c")


def test_locked_and_damaged_zips_are_one_sentence(tmp_path: Path) -> None:
    plain = bytearray(packed(tmp_path / "x.zip", ("a.png", b"hello")).read_bytes())
    at = plain.index(b"PK\x01\x02")
    locked = bytes(plain[: at + 8]) + b"\x01" + bytes(plain[at + 9 :])
    damaged = bytes(plain).replace(b"PK\x03\x04", b"XX\x03\x04")
    for content, said in (
        (locked, "has a password"),
        (damaged, "is damaged"),
        (b"", "is damaged"),
        (b"PK", "is damaged"),
    ):
        (tmp_path / "y.zip").write_bytes(content)
        with pytest.raises(Refused, match=said):
            unpack(tmp_path / "y.zip", tmp_path / "room")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=6))
def test_names_from_a_zip_are_plain(names: list[str]) -> None:
    made = flat(names)
    assert len(made) == len(names)
    for name in made:
        assert name and "/" not in name and "\\" not in name
        assert re.fullmatch(r"[\w-][\w.-]*", safe_file(name)) and safe_file(name) != ".."


def seed(home: Path) -> None:
    """A workspace whose every text is markup: file names, captions, a run that failed, a comparison, a recipe."""
    data = home / "datasets" / "mine"
    data.mkdir(parents=True)
    name = "<img src=x onerror=window.hit=1>"
    Image.new("RGB", (64, 64), "red").save(data / f"{name}.png")
    (data / f"{name}.txt").write_text(MARKUP)
    (data / "torn.png").write_text(MARKUP)
    (home / "datasets" / ".mine.json").write_text(json.dumps({"trigger": MARKUP, "title": MARKUP}))
    recipe = yaml.safe_load((ROOT / "recipes" / "demo" / "style-lora.yaml").read_text())
    recipe |= {"name": MARKUP, "description": MARKUP, "data": [{"path": str(data), "trigger": MARKUP}]}
    recipe["validate"]["prompts"] = [MARKUP]
    recipe["source"] = str(ROOT / "recipes" / "demo" / "base")
    run = home / "runs" / "2026-01-01-<img src=x onerror=window.hit=1>"
    for folder, file in ((home / "recipes", "own.yaml"), (run, "recipe.yaml")):
        folder.mkdir(parents=True)
        (folder / file).write_text(yaml.safe_dump(recipe))
    Image.new("RGB", (32, 32)).save(run / "s.png")
    told = [
        {"kind": "started", "pid": 1, "born": 0, "from_step": 0, "steps": 9, "device": MARKUP, "precision": MARKUP,
         "family": MARKUP, "name": MARKUP},
        {"kind": "warning", "text": MARKUP, "message": MARKUP},
        {"kind": "note", "text": MARKUP, "message": MARKUP},
        {"kind": "step", "step": 1, "of": 9, "loss": 1.0, "lr": 1e-4, "norm": 1.0, "seconds": 1.0},
        {"kind": "sample", "step": 1, "files": [{"prompt": MARKUP, "file": "s.png", "seed": 0}]},
        {"kind": "checkpoint", "step": 1, "path": "checkpoints/step-000001"},
        {"kind": "failed", "error": f"{MARKUP}\n{MARKUP}", "user": True},
    ]  # fmt: skip
    (run / "events.jsonl").write_text("".join(json.dumps({"at": 1.0 + i, **e}) + "\n" for i, e in enumerate(told)))
    (run / "log.txt").write_text(MARKUP)
    asked = {
        "family": "flux1",
        "prompts": [MARKUP],
        "contenders": [{"label": MARKUP, "adapter": None, "strength": 1.0}],
    }
    (home / "compare" / "one").mkdir(parents=True)
    (home / "compare" / "one" / "request.yaml").write_text(yaml.safe_dump(asked))
    (home / "compare" / "one" / "events.jsonl").write_text(json.dumps({"at": 1.0, "kind": "failed", "error": MARKUP}))
    (home / "draft.json").write_text(json.dumps({"dataset": "mine", "recipe": "own:own.yaml", "raw": recipe}))


@pytest.mark.browser
def test_markup_is_text_and_a_token_goes_nowhere(context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.app.browser import expect

    token = "hf_canaryToken7391"
    monkeypatch.setenv("HF_TOKEN", token)
    home, asked = tmp_path / "home", []
    seed(home)
    window, _ = context
    page = window.new_page()
    page.on("request", lambda one: asked.append(f"{one.url} {one.headers} {one.post_data_buffer or ''}"))
    with served(home, "0.01") as address:
        page.goto(address)
        expect(page.locator(".t-caption").first).to_contain_text("<script>")
        for screen in page.get_by_role("tab").all():
            screen.click()
            page.wait_for_timeout(1500)
            assert page.evaluate("window.hit") is None, screen.inner_text()
            assert page.locator("img[src=x]").count() == 0, screen.inner_text()
        page.get_by_role("tab", name="Train").click()
        expect(page.locator(".t-band")).to_contain_text("<img src=x")
        page.get_by_role("tab", name="Dataset").click()
        page.get_by_label("Data set", exact=True).select_option("demo")
        page.get_by_role("tab", name="Recipe").click()
        page.locator(".t-recipe").filter(has_text="Demo style").click()
        page.locator("#start").click()
        expect(page.locator(".t-band[data-state=running]")).to_be_visible()
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        shown = page.content()
    assert page.context.cookies() is not None and token not in json.dumps(page.context.cookies())
    assert token not in kept and token not in shown and not [one for one in asked if token in one]
    inside = [p for p in home.parent.rglob("*") if p.is_file()]
    assert not [p for p in inside if token.encode() in p.read_bytes()]
