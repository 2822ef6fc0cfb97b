"""What several tests of the app need: waiting, and the app in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FAKE = HERE / "fake_engine.py"


def until(true: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(home: Path, engine: str = "0.02", port: int = 0, password: str = "") -> Iterator[str]:
    """The app in a process of its own, on a free port unless one is given."""
    port = port or free_port()
    environment = {**os.environ, "TUNER_HOME": str(home), "PYTHONPATH": str(ROOT), "TUNER_PASSWORD": password}
    log = (home.parent / f"app-{port}.log").open("wb")
    child = subprocess.Popen(
        [sys.executable, str(HERE / "serve.py"), str(port), engine], env=environment, stdout=log, stderr=log
    )
    address = f"http://127.0.0.1:{port}/"
    try:
        _wait(address, child)
        yield address
    finally:
        child.terminate()
        child.wait(10)
        log.close()


def _wait(address: str, child: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            assert child.poll() is None, "the app ended while starting"
            assert time.monotonic() < end, "the app did not start in a minute"
            time.sleep(0.1)
