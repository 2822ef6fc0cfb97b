"""Start the app: `python app.py`, then open the address it prints."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from typing import Any

from gradio_app import space
from gradio_app.door import USER, Place, door, lan
from gradio_app.main import build, serving
from gradio_app.studio import Studio, open_studio

LEAST = 12


def main(arguments: list[str] | None = None, studio: Studio | None = None) -> None:
    """Serve the app until it is interrupted. `studio` replaces the usual one in tests."""
    options = _options(arguments)
    away = options.share or options.host not in ("127.0.0.1", "localhost")
    password = options.password or os.environ.pop("TUNER_PASSWORD", "") or (secrets.token_urlsafe(15) if away else "")
    if away and len(password) < LEAST:
        sys.exit(f"The password must have at least {LEAST} characters when others can reach the app.")
    studio = studio or open_studio()
    place = lan(options.name, options.share) if away else Place()
    page = build(studio)
    page.queue(default_concurrency_limit=4, max_size=64)
    _, address, public = page.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        auth=door(password) if password else None,
        prevent_thread_lock=True,
        **serving(studio, place),
    )
    page.share = False  # so that a share link, too, is served our own files and not a copy from elsewhere
    _say(f"Tuner is at {address}")
    _say(f"Your data sets and runs are in {studio.workspace.root}")
    if public:
        _say(f"Others reach it at {public}")
    if password:
        _say(f"User: {USER}   Password: {password}")
    page.block_thread()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune diffusion models in the browser, on this machine.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; anything but this machine needs a password"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument("--share", action="store_true", help="also open a public link, behind a password")
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="a further host name under which others reach it"
    )
    parser.add_argument(
        "--password",
        default="",
        help="password to ask for (user: tuner), else that of TUNER_PASSWORD; made up when one is needed",
    )
    return parser.parse_args(arguments)


def on_space() -> tuple[Any, dict[str, Any]]:
    """The page of a Hugging Face Space, and how it is served there."""
    studio = open_studio()
    page = build(studio)
    page.queue(default_concurrency_limit=4, max_size=64)
    return page, serving(studio, space.PLACE)


# A Space looks for `demo` in this file, and runs the file.
demo, served = on_space() if space.space_id() else (None, {})

if __name__ == "__main__":
    if demo is None:
        main()
    else:
        demo.launch(server_name="0.0.0.0", share=False, **served)
