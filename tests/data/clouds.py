"""A real S3 server on this machine (moto), and a proxy before it that cuts connections."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Cutter(ThreadingHTTPServer):
    """Passes requests on; of the next `cuts` answers with a body to a GET only half arrives."""

    def __init__(self, port: int) -> None:
        self.behind, self.cuts, self.asked = port, 0, []
        super().__init__(("127.0.0.1", 0), _Pass)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Pass(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Cutter

    def _pass(self) -> None:
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        behind.request(self.command, self.path, headers=dict(self.headers))
        answer = behind.getresponse()
        body = answer.read()
        self.server.asked.append((self.command, self.path))
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("transfer-encoding", "connection", "server", "date"):
                self.send_header(key, value)
        if self.command == "GET" and answer.getheader("content-length") is None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET" and "list-type" not in self.path and self.server.cuts:
            self.server.cuts -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD = _pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """Address of an S3 server."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[Any]:
    """An empty bucket called `data`; the environment points to its server, TUNER_HOME to a folder of the test."""
    import boto3

    for key, value in {
        "AWS_ENDPOINT_URL": moto, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "TUNER_HOME": str(tmp_path / "home"),
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("tuner.data.stores.s3.PAUSE", 0.01)
    monkeypatch.setattr("tuner.data.stores.remote._known", {})
    made = boto3.resource("s3", endpoint_url=moto).create_bucket(Bucket="data")
    yield made
    made.objects.all().delete()
    made.delete()


@pytest.fixture
def cutter(bucket: Any, moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cutter]:
    """The proxy before the server; the environment points to it."""
    server = Cutter(int(moto.rsplit(":", 1)[1]))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.shutdown()
    server.server_close()
