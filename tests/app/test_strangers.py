"""Behind a password: strangers get the page that asks for it, and no other address of Gradio's, known or to come."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AuthenticationError

from gradio_app import strangers, words
from gradio_app.door import OPEN, UNUSED
from gradio_app.main import build
from gradio_app.studio import Studio
from tests.app.helpers import served

PASSWORD = "correct horse battery"
REFUSED = "Sign in first"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app behind a password, which came by the environment."""
    with served(tmp_path_factory.mktemp("strangers") / "home", "0", password=PASSWORD) as where:
        yield where


def asked(app: Any) -> set[tuple[str, str]]:
    """Every address that Gradio answers to, with its method."""
    found: set[tuple[str, str]] = set()
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            found |= asked(inner)
        else:
            found |= {(method, route.path) for method in getattr(route, "methods", None) or ("GET",)}
    return found


def test_a_stranger_is_refused_at_every_address(address: str, studio: Studio) -> None:
    """Also where Gradio itself does not ask: streams, cancelling, heartbeats, its files and the list of endpoints."""
    addresses = asked(gr.routes.App.create_app(build(studio)))
    assert len(addresses) > 60 and ("POST", "/gradio_api/cancel") in addresses
    line = http.client.HTTPConnection(address.split("/")[2], timeout=10)
    for method, path in sorted(addresses | {("GET", "/gradio_api/of-tomorrow"), ("GET", "//"), ("GET", "/./")}):
        if path in (*OPEN, "/"):
            continue
        for inside in ("x", "../../../../etc/passwd", "%2e%2e/%2e%2e/login", "..%2f..%2flogin"):
            line.request(method, re.sub(r"\{[^}]*\}", lambda _, inside=inside: inside, path), headers={"Cookie": "a=b"})
            answer = line.getresponse()
            told = answer.read().decode()
            shut = path.startswith(UNUSED) and answer.status == 404
            assert shut or (answer.status == 401 and (REFUSED in told or method == "HEAD")), (method, path, inside)
            if "{" not in path:
                break


def test_the_page_of_a_stranger_holds_nothing_of_the_app(address: str) -> None:
    with httpx.Client(base_url=address) as web:
        page = web.get("/?tab=train&__theme=dark")
        assert page.status_code == 200 and "Password" in page.text and page.headers["cache-control"] == "no-store"
        assert not re.search("gradio|config|list_runs|Tuner\\.", page.text)
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert web.get("/", headers={"Host": "evil.example"}).status_code == 400
        assert web.post("/").status_code == 401


def test_bodies_are_limited_and_parts_that_are_not_used_are_shut(address: str) -> None:
    """A log-in is small; what is no upload goes into memory, and may not fill it."""

    def told(path: str, size: str, cookie: str = "") -> int:
        line = http.client.HTTPConnection(address.split("/")[2], timeout=10)
        line.putrequest("POST", path)
        line.putheader(*(("Transfer-Encoding", "chunked") if size == "?" else ("Content-Length", size)))
        line.putheader("Cookie", cookie)
        line.endheaders()
        status = line.getresponse().status
        line.close()
        return status

    assert told("/login", str(1 << 20)) == 413 and told("/login", "?") == 411
    with httpx.Client(base_url=address) as web:
        assert web.post("/login", data={"username": "tuner", "password": PASSWORD}).status_code == 200
        cookie = "; ".join(f"{name}={value}" for name, value in web.cookies.items())
        assert web.get("/config").status_code == 200
        for path in ("monitoring/x", "gradio_api/dev/reload", "gradio_api/proxy=http://127.0.0.1:1/x"):
            assert web.get(path).status_code == 404
        many = [("files", (f"{number}.png", b"x")) for number in range(1001)]
        assert web.post("/gradio_api/upload", files=many).status_code == 400
    for path in ("/gradio_api/run/predict", "/gradio_api/queue/join", "/gradio_api/cancel"):
        assert told(path, str(65 << 20), cookie) == 413 and told(path, "?", cookie) == 411


def test_scripts_come_in_with_the_password_only(address: str, tmp_path: Path) -> None:
    for auth in (None, ("tuner", "wrong wrong wrong"), ("root", PASSWORD)):
        with pytest.raises((AuthenticationError, ValueError, httpx.HTTPStatusError)):
            Client(address, verbose=False, auth=auth, download_files=str(tmp_path))
    client = Client(address, verbose=False, auth=("tuner", PASSWORD), download_files=str(tmp_path))
    assert client.predict(api_name="/list_datasets")[0]["name"] == "demo"


@pytest.mark.browser
def test_signing_in_by_the_keyboard_in_ones_own_language(address: str) -> None:
    browser = pytest.importorskip("tests.app.browser", reason="playwright or a browser is missing")
    from tests.app.test_access import barriers

    with browser.watched(locale="pt-BR") as (window, _):
        page = window.new_page()
        page.goto(f"{address}?tab=help")
        told = words.catalogue("pt-BR")
        assert page.evaluate("document.documentElement.lang") == "pt-BR"
        assert page.evaluate("document.activeElement.name") == "password"
        browser.shot(page, "sign-in")
        assert barriers(page) == []
        page.keyboard.type("not this one, sorry")
        page.keyboard.press("Enter")
        wrong = "That is not the password. Each wrong try makes the next one wait longer."
        browser.expect(page.get_by_role("alert")).to_have_text(told[wrong])
        assert barriers(page) == []
        page.get_by_label(told["Password"]).fill(PASSWORD)
        page.keyboard.press("Enter")
        browser.expect(page.locator("#help .t-terms").first).to_be_visible()
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        assert PASSWORD not in kept and "access-token" not in kept and "horse" not in kept


@pytest.mark.parametrize(
    ("accepted", "tongue"),
    [
        ("", "en"),
        ("de,fr;q=0.5", "en"),
        ("pt;q=0.9,en", "pt-BR"),
        ("zh-TW", "zh-CN"),
        ("en-GB,zh", "en"),
        ("<b>", "en"),
    ],
)
def test_the_language_of_a_stranger(accepted: str, tongue: str) -> None:
    assert strangers.language(accepted) == tongue
    assert f"<html lang={tongue}>" in strangers.sign_in("tuner", accepted)
