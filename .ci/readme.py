"""Write the generated tables into README.md between their markers, or with --check fail if they are not current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- generated: tables -->", "<!-- end of generated -->"


def main() -> int:
    """Returns the exit code."""
    tables = subprocess.run(
        [sys.executable, "-m", "tuner", "describe", "--markdown"],
        check=True,
        capture_output=True,
        text=True,
        cwd=README.parent,
    ).stdout
    text = README.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    current = f"{head}{BEGIN}\n{tables.strip()}\n{END}{tail}"
    if "--check" in sys.argv:
        if current != text:
            sys.stderr.write("README.md has old tables; run `python .ci/readme.py` and commit.\n")
        return int(current != text)
    README.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
