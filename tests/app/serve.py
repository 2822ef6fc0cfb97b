"""Start the app for a test, with the fake engine unless told `real`: serve.py PORT [PACE|real]."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from app import main  # noqa: E402
from gradio_app.studio import open_studio  # noqa: E402

if __name__ == "__main__":
    port, engine = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "0.02"
    command = None if engine == "real" else (sys.executable, str(HERE / "fake_engine.py"), engine)
    main(["--port", port], open_studio(command=command))
