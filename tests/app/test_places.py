"""Share, LAN, Space and notebook: who is let in where. With stubs for what only exists there; no network."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml

from gradio_app import door, space
from gradio_app.door import HERE, Guard, Place, lan
from gradio_app.notebook import COLAB, JUPYTER
from tests.app.helpers import ROOT, free_port, served


def outcome(code: str, home: Path, **environment: str) -> dict:
    """What a script in a process of its own prints as its last line."""
    names = {**os.environ, "TUNER_HOME": str(home), "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=names, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize(
    ("place", "answered", "refused"),
    [
        (Place(), "127.0.0.1:7860 localhost [::1]:7860", "evil.example 192.168.1.7 localhost.evil.example"),
        (lan(["my.example"], False), "192.168.1.7:7860 [fe80::1] my.example:80", "evil.example abc.gradio.live"),
        (lan([], True), "abc.gradio.live localhost", "gradio.live abc.gradio.live.evil.example evilgradio.live"),
        (COLAB, "x-7860.googleusercontent.com", ""),
    ],
)
def test_names_an_app_answers_to(place: Place, answered: str, refused: str) -> None:
    assert [name for name in answered.split() if not place.answers_to(name)] == []
    assert [name for name in refused.split() if place.answers_to(name)] == []
    assert place == COLAB or not place.answers_to("")


def test_frames_and_what_a_page_may_load() -> None:
    here, book = Place().headers(), JUPYTER.headers()
    assert (
        here["X-Frame-Options"] == "SAMEORIGIN" and "frame-ancestors 'self';" in here["Content-Security-Policy"] + ";"
    )
    assert "default-src 'self'" in here["Content-Security-Policy"] and "http" not in here["Content-Security-Policy"]
    assert "X-Frame-Options" not in book and "http://localhost:*" in book["Content-Security-Policy"]
    assert "Content-Security-Policy" not in space.PLACE.headers()
    assert HERE == ("127.0.0.1", "localhost", "::1")


def test_foreign_names_other_sites_and_endless_uploads_are_refused(tmp_path: Path) -> None:
    with served(tmp_path / "home") as address, httpx.Client(base_url=address) as web:
        told = web.get("/", headers={"Host": "evil.example"})
        assert told.status_code == 400 and "does not answer to the name 'evil.example'" in told.text
        page = web.get("/")
        assert page.status_code == 200 and page.headers["X-Content-Type-Options"] == "nosniff"
        assert (
            page.headers["X-Frame-Options"] == "SAMEORIGIN"
            and "object-src 'none'" in page.headers["Content-Security-Policy"]
        )
        file = {"files": ("a.png", b"x")}
        upload = "/gradio_api/upload"
        for foreign in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site", "Origin": address},
        ):
            assert web.post(upload, files=file, headers=foreign).status_code == 403, foreign
            assert web.post("/gradio_api/run/predict", json={}, headers=foreign).status_code == 403, foreign
        kept = web.post(upload, files=file, headers={"Origin": address.rstrip("/"), "Sec-Fetch-Site": "same-origin"})
        assert kept.status_code == 200 and Path(kept.json()[0]).is_relative_to(tmp_path / "home" / "cache" / "uploads")
        assert web.post(upload, content=iter([b"endless"])).status_code == 411
        assert _announce(address, 5 << 30) == (413, "Send at most 4 GB at once.")
        told = web.post(upload, files={"files": ("big.png", b"\0" * (201 << 20))}, timeout=60)
        assert told.status_code == 413
        assert (tmp_path / "home" / "cache" / "uploads").stat().st_mode & 0o777 == 0o700


def _announce(address: str, size: int) -> tuple[int, str]:
    """Say that so many bytes will follow; what the app answers before they do."""
    line = http.client.HTTPConnection(address.split("/")[2], timeout=10)
    line.putrequest("POST", "/gradio_api/upload")
    line.putheader("Content-Length", str(size))
    line.endheaders()
    answer = line.getresponse()
    told = answer.status, answer.read().decode()
    line.close()
    return told


def test_a_nearly_full_disk_is_said_before_the_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.datastructures import Headers

    guard = Guard(lambda *_: None, Place(), tmp_path)  # type: ignore[arg-type,return-value]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload"}
    said = Headers({"host": "localhost", "content-length": str(1 << 20)})
    assert guard._refusal(scope, said) == (0, "")
    usage = type("Usage", (), {"free": 2 << 30})
    monkeypatch.setattr(door.shutil, "disk_usage", lambda _: usage)
    status, sentence = guard._refusal(scope, said)
    assert status == 507 and "nearly full" in sentence


def test_log_in_attempts_are_limited_and_do_not_hold_up_the_app(tmp_path: Path) -> None:
    port = free_port()
    environment = {**os.environ, "TUNER_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "app.py"), "--host", "0.0.0.0", "--port", str(port)]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(3)]
        user, password = lines[2].split()[1], lines[2].split()[3]
        assert user == "tuner" and len(password) >= 16
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as web:
            _guess(web, port, password)
    finally:
        child.terminate()
        child.wait(10)
        assert child.stdout is not None
        child.stdout.close()


def _guess(web: httpx.Client, port: int, password: str) -> None:
    assert web.get("/gradio_api/info").status_code == 401 and web.get("/config").status_code == 401
    begun, statuses = time.monotonic(), []

    def wrong() -> None:
        with httpx.Client(timeout=60) as other:
            answer = other.post(f"http://127.0.0.1:{port}/login", data={"username": "tuner", "password": "x" * 16})
            statuses.append(answer.status_code)

    guesses = [threading.Thread(target=wrong) for _ in range(4)]
    for guess in guesses:
        guess.start()
    time.sleep(0.5)
    assert web.get("/").status_code == 200
    assert any(guess.is_alive() for guess in guesses), "guessing holds up the app"
    for guess in guesses:
        guess.join()
    assert statuses == [400] * 4 and time.monotonic() - begun > 4.0, "four guesses at once are as slow as one by one"
    assert web.post("/login", data={"username": "tuner", "password": password}).status_code == 200
    assert web.get("/config").status_code == 200
    assert web.get("/config", headers={"Host": "evil.example"}).status_code == 400
    assert web.get("/config", headers={"Host": "192.168.7.7"}).status_code == 200


def test_dangerous_settings_of_the_environment_are_dropped(tmp_path: Path) -> None:
    wished = {
        "GRADIO_VIBE_MODE": "1",
        "GRADIO_SHARE": "True",
        "GRADIO_ALLOWED_PATHS": "/",
        "GRADIO_SERVER_NAME": "0.0.0.0",
    }
    code = "import gradio_app, os, json; print(json.dumps({k: v for k, v in os.environ.items() if k in %r}))"
    assert outcome(code % (tuple(wished),), tmp_path, **wished) == {}


SPACE = {
    "SPACE_ID": "Alice/my-tuner",
    "SPACE_HOST": "alice-my-tuner.hf.space",
    "SYSTEM": "spaces",
    "OAUTH_CLIENT_ID": "id",
    "OAUTH_CLIENT_SECRET": "secret",
    "OAUTH_SCOPES": "openid profile",
    "OPENID_PROVIDER_URL": "https://huggingface.invalid",
}
ASK = """
    import base64, hashlib, json, socket, sys, time
    asked = []
    real = socket.getaddrinfo
    socket.getaddrinfo = lambda host, *a, **k: (asked.append(host), real(host, *a, **k))[1]
    import app, httpx
    from itsdangerous import TimestampSigner

    assert app.demo is not None
    app.demo.launch(prevent_thread_lock=True, share=False, **app.served)

    def ask(method, path, user="", age=0, **more):
        signer = TimestampSigner(hashlib.sha256(b"secret-v4").hexdigest())
        info = {"userinfo": {"preferred_username": user, "name": user, "profile": "", "picture": ""},
                "access_token": "hf_x", "expires_at": time.time() + 60 - age}
        cookie = {"session": signer.sign(base64.b64encode(json.dumps({"oauth_info": info}).encode())).decode()}
        with httpx.Client(cookies=cookie if user else {}) as web:
            answer = web.request(method, app.demo.local_url.rstrip("/") + path, **more)
            return [answer.status_code, answer.text]

    told = {user or "nobody": {
        "page": ask("GET", "/", user),
        "config": ask("GET", "/config", user)[0],
        "files": ask("GET", "/gradio_api/file=/etc/passwd", user)[0],
        "start": ask("POST", "/gradio_api/call/list_runs", user, json={"data": []})[0],
        "upload": ask("POST", "/gradio_api/upload", user, files={"files": ("a.png", b"x")})[0],
    } for user in ("", "mallory", "alice", "bob")}
    told["late"] = ask("GET", "/config", "alice", 120)[0]
    told["notice"] = "vanish" in ask("GET", "/config", "alice")[1]
    told["asked"] = sorted(set(map(str, asked)) - {"127.0.0.1", "localhost", "0.0.0.0", "None"})
    print(json.dumps(told))
    sys.stdout.flush()
    import os
    os._exit(0)
"""


def test_a_space_lets_its_owner_in_and_nobody_else(tmp_path: Path) -> None:
    pytest.importorskip("authlib", reason="authlib is not installed (requirements-dev.txt)")
    told = outcome(ASK, tmp_path, **SPACE, TUNER_OWNERS="bob", GRADIO_SERVER_PORT=str(free_port()))
    for stranger in ("nobody", "mallory"):
        status, text = told[stranger]["page"]
        assert status == 200 and "Duplicate to use" in text and "hardware of Alice" in text and "gradio" not in text
        assert [told[stranger][key] for key in ("config", "files", "start", "upload")] == [401] * 4
    for owner in ("alice", "bob"):
        assert "Duplicate to use" not in told[owner]["page"][1]
        assert [told[owner][key] for key in ("config", "files", "start", "upload")] == [200, 403, 200, 200]
    assert told["late"] == 401 and told["asked"] == []
    assert told["notice"] is not os.access("/data", os.W_OK)


def test_a_space_keeps_its_files_where_there_is_storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(space, "DATA", tmp_path)
    assert space.storage() is None and space.notice() == ""
    monkeypatch.setenv("SPACE_ID", "alice/x")
    assert space.storage() == tmp_path / "tuner" and space.notice() == ""
    monkeypatch.setattr(space, "DATA", tmp_path / "missing")
    assert space.storage() is None and "vanish when it restarts" in space.notice()


def test_the_card_of_a_space_names_what_was_tested() -> None:
    head = yaml.safe_load((ROOT / "gradio_app" / "space.md").read_text().split("---")[1])
    pinned = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split() if "==" in line)
    assert head["sdk"] == "gradio" and head["sdk_version"] == pinned["gradio"] and head["hf_oauth"] is True
    assert (ROOT / head["app_file"]).exists() and len(head["short_description"]) <= 60


NOTEBOOK = """
    import json, subprocess, sys, types, urllib.request
    colab, ipython, shown, ran = types.ModuleType("google.colab"), types.ModuleType("IPython"), [], []
    parts = {name: types.ModuleType(f"IPython.{name}") for name in ("display", "core", "core.getipython")}
    parts["display"].HTML = parts["display"].Javascript = str
    parts["display"].display = lambda what: shown.append(str(what))
    ipython.get_ipython = parts["core.getipython"].get_ipython = lambda: "<google.colab._shell.Shell object>"
    sys.modules |= {"google.colab": colab, "IPython": ipython, **{f"IPython.{n}": m for n, m in parts.items()}}
    real = subprocess.run
    subprocess.run = lambda command, **k: ran.append(command)
    cells = [c for c in json.load(open("gradio_app/tuner.ipynb"))["cells"] if c["cell_type"] == "code"]
    names = {"__name__": "__main__"}
    for cell in cells:
        exec("".join(cell["source"]), names)
    app = names["app"]
    proxied = urllib.request.Request(app.address, headers={"Host": "x.googleusercontent.com"})
    status = urllib.request.urlopen(proxied).status
    print(json.dumps({"status": status, "share": app.page.share, "colab": app.page.is_colab, "shown": shown,
                      "pip": ran[0][1:5], "torch": any(part.startswith("torch==") for part in ran[0])}))
    sys.stdout.flush()
    import os
    os._exit(0)
"""


def test_the_notebook_runs_in_a_stub_of_colab(tmp_path: Path) -> None:
    told = outcome(NOTEBOOK, tmp_path)
    assert told["status"] == 200 and told["colab"] is True and told["share"] is False
    assert len(told["shown"]) == 1 and "google.colab.kernel.proxyPort" in told["shown"][0]
    assert told["pip"] == ["-m", "pip", "install", "-q"] and told["torch"] is False


def test_the_notebook_holds_no_outputs() -> None:
    book = json.loads((ROOT / "gradio_app" / "tuner.ipynb").read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert {cell["execution_count"] for cell in code} == {None}


def test_launch_can_be_closed_and_started_again(tmp_path: Path) -> None:
    code = """
        import json, urllib.request
        from gradio_app import launch
        seen = []
        for _ in range(2):
            app = launch()
            seen.append(urllib.request.urlopen(app.address).status)
            app.close()
        print(json.dumps({"seen": seen, "share": app.page.share}))
    """
    assert outcome(code, tmp_path) == {"seen": [200, 200], "share": False}
