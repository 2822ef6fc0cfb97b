"""Write the generated tables into README.md between their markers, or with --check fail if they are not current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TABLES = ("<!-- generated: tables -->", "<!-- end of generated -->")
PROOFS = ("<!-- generated: proofs -->", "<!-- end of generated proofs -->")


def tables() -> str:
    """Families and techniques, as the engine describes them."""
    command = [sys.executable, "-m", "tuner", "describe", "--markdown"]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def proofs() -> str:
    """What the training proofs measured when they were last written (`pytest -m families --golden-write`)."""
    lines = ["| model and task | overfit, then sampled: cosine | with the answer's sign flipped |", "|---|---|---|"]
    for file in sorted((ROOT / "tests" / "golden").glob("*.overfit.txt")):
        right, wrong = file.read_text(encoding="utf-8").split()
        lines.append(f"| {file.name.removesuffix('.overfit.txt')} | {right} | {wrong} |")
    return "\n".join(lines)


def put(text: str, marks: tuple[str, str], content: str) -> str:
    """`text` with `content` between the marks. Raises `ValueError` where they are missing."""
    if marks[0] not in text or marks[1] not in text:
        raise ValueError(f"README.md lacks the mark {marks[0]} or {marks[1]}; put both back.")
    head, _, rest = text.partition(marks[0])
    _, _, tail = rest.partition(marks[1])
    return f"{head}{marks[0]}\n{content.strip()}\n{marks[1]}{tail}"


def main() -> int:
    """Returns the exit code."""
    text = README.read_text(encoding="utf-8")
    current = put(put(text, TABLES, tables()), PROOFS, proofs())
    if "--check" in sys.argv:
        if current != text:
            sys.stderr.write("README.md has old tables; run `python .ci/readme.py` and commit.\n")
        return int(current != text)
    README.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
