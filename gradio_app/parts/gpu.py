"""Temperature and power of an NVIDIA card, as its driver's own tool says: asked beside the page, never in its way."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time

ASK = ("--query-gpu=temperature.gpu,power.draw,utilization.gpu", "--format=csv,noheader,nounits")
EVERY = 4.0


class Gauge:
    """The newest reading. `read` never waits: a reading that is too old has the next one asked for in a thread."""

    def __init__(self) -> None:
        self._said, self._at = "", float("-inf")
        self._asking = threading.Lock()

    def read(self) -> str:
        """'62 °C, 240 W, 98 % busy'; empty before the first answer, and where there is no such tool."""
        if time.monotonic() - self._at > EVERY and self._asking.acquire(blocking=False):
            threading.Thread(target=self._ask, name="gpu", daemon=True).start()
        return self._said

    def _ask(self) -> None:
        try:
            self._said = look()
        finally:
            self._at = time.monotonic()
            self._asking.release()


def look() -> str:
    """Ask now, and wait."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    try:
        done = subprocess.run([tool, "-i", card, *ASK], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    values = [part.strip() for part in done.stdout.split("\n")[0].split(",")]
    shown = [(value, unit) for value, unit in zip(values, ("°C", "W", "% busy"), strict=False) if _number(value)]
    return ", ".join(f"{float(value):.0f} {unit}" for value, unit in shown)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


gauge = Gauge()
