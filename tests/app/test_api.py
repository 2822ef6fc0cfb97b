"""Scripts drive the app: the endpoints through `gradio_client`, with the fake engine and with the real one."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from gradio_app.api import ENDPOINTS
from gradio_app.main import build
from gradio_app.studio import Studio
from tests.app.helpers import served, until
from tuner import home

BASE = home.package_recipes() / "demo" / "base"


def connect(address: str, downloads: Path) -> Client:
    """A client that says nothing on the terminal and keeps what it fetches here."""
    return Client(address, verbose=False, download_files=str(downloads))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The app with the fake engine."""
    folder = tmp_path_factory.mktemp("api")
    with served(folder / "home", "0.02") as address:
        yield connect(address, folder / "got")


def wait_for(client: Client, run: str, states: tuple[str, ...], seconds: float = 120.0) -> dict[str, Any]:
    """Poll as a script would."""
    end = time.monotonic() + seconds
    while (told := client.predict(run, api_name="/status"))["state"] not in states:
        assert told["state"] not in ("failed", "crashed"), told
        assert time.monotonic() < end, told
        time.sleep(0.1)
    return told


def refusal(client: Client, *values: Any, api_name: str) -> str:
    """What the app says when it does not do what was asked."""
    with pytest.raises(AppError) as caught:
        client.predict(*values, api_name=api_name)
    return str(caught.value)


def test_only_the_endpoints_are_public_and_all_are_typed_and_told(studio: Studio) -> None:
    info = build(studio).get_api_info()
    assert set(info["named_endpoints"]) == {f"/{name}" for name in ENDPOINTS}
    for name, told in info["named_endpoints"].items():
        assert told["description"], name
        for part in (*told["parameters"], *told["returns"]):
            assert part["python_type"]["type"], (name, part)


def test_the_whole_drive(client: Client, pictures: Path, tmp_path: Path) -> None:
    packed = tmp_path / "mine.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("all/red.txt", "a red square\n")
        archive.writestr("all/../../../escaped.txt", "out")
        for colour in ("red", "blue"):
            Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
            archive.write(tmp_path / f"{colour}.png", f"all/{colour}.png")
    files = [handle_file(path) for path in (pictures / "one.png", packed)]
    made = client.predict("My set", files, api_name="/create_dataset")
    assert (made["name"], made["pictures"], made["captions"]) == ("my-set", 3, 1)
    assert any("escaped" in line for line in made["left_out"])
    assert made["name"] in [each["name"] for each in client.predict(api_name="/list_datasets")]
    recipe = next(r["id"] for r in client.predict(api_name="/list_recipes") if r["id"].startswith("demo/"))
    changes = {"train.steps": 500, "name": "by-script", "adapter.rank": 4}
    run = client.predict(made["name"], recipe, changes, api_name="/start")["run"]
    wait_for(client, run, ("running",))
    assert "Press again" in client.predict(run, api_name="/stop")
    at = wait_for(client, run, ("stopped",))["step"]
    assert 0 < at < 500 and "no adapter" in refusal(client, run, "diffusers", api_name="/adapter")
    client.predict(run, api_name="/resume")
    told = wait_for(client, run, ("finished",))
    assert told["step"] == told["steps"] == 500 and told["layouts"] == ["diffusers", "comfyui"] and told["error"] == ""
    got = Path(client.predict(run, api_name="/adapter"))
    assert got.name == "pytorch_lora_weights.safetensors" and got.read_bytes() == b"not really"
    assert client.predict(api_name="/list_runs")[0]["run"] == run


def test_what_cannot_be_done_is_one_sentence(client: Client, tmp_path: Path) -> None:
    good = ("demo", "demo/style-lora.yaml")
    assert "no data set 'dogs'" in refusal(client, "dogs", good[1], {}, api_name="/start")
    assert "no recipe 'x'" in refusal(client, "demo", "x", {}, api_name="/start")
    assert "train.stepz" in refusal(client, *good, {"train.stepz": 5}, api_name="/start")
    assert "no setting" in refusal(client, *good, {"data.9.path": "/"}, api_name="/start")
    assert "come from the data set" in refusal(client, *good, {"data.0.path": "/"}, api_name="/start")
    assert "no model folder" in refusal(client, *good, {"source": "missing"}, api_name="/start")
    assert "no run '../x'" in refusal(client, "../x", api_name="/status")
    assert "no layout" in refusal(client, _any_run(client), "../..", api_name="/adapter")
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 torn")
    told = refusal(client, "x", [handle_file(tmp_path / "bad.zip")], api_name="/create_dataset")
    assert "This zip is damaged" in told
    (tmp_path / "notes.png").write_text("not a picture")
    told = refusal(client, "x", [handle_file(tmp_path / "notes.png")], api_name="/create_dataset")
    assert "No file could be used. notes.png: it is damaged" in told
    assert "at least one picture" in refusal(client, "x", [], api_name="/create_dataset")
    assert "Expected a list" in refusal(client, "x", "files", api_name="/create_dataset")
    assert "Send files as uploads" in refusal(client, "x", [7], api_name="/create_dataset")
    assert [each["name"] for each in client.predict(api_name="/list_datasets")].count("x") == 0


def test_what_the_page_prepares_stays_as_it_is(studio: Studio) -> None:
    from gradio_app.api import Api
    from gradio_app.main import begin

    studio.project.update({"train.steps": 77})
    before = (studio.workspace.root / "draft.json").read_bytes()
    run = Api(studio, begin).start("demo", "demo/style-lora.yaml", {"train.steps": 5})["run"]
    until(lambda: Api(studio, begin).status(run)["state"] == "finished")
    assert (studio.workspace.root / "draft.json").read_bytes() == before


@pytest.mark.long
@pytest.mark.skipif(not (BASE / "model_index.json").exists(), reason="the demo's base model is not in this checkout")
def test_the_whole_drive_with_the_real_engine(pictures: Path, tmp_path: Path) -> None:
    """Data set → start → poll → finish → an adapter that safetensors can read and that is not all zeros."""
    from safetensors.numpy import load_file

    with served(tmp_path / "home", "real") as address:
        client = connect(address, tmp_path / "got")
        files = [handle_file(path) for path in sorted(pictures.iterdir())]
        made = client.predict("squares", files, "sks", api_name="/create_dataset")
        changes = {"train.steps": 3, "train.batch": 2, "validate": None}
        run = client.predict(made["name"], "demo/style-lora.yaml", changes, api_name="/start")["run"]
        told = wait_for(client, run, ("finished",), 240)
        assert told["step"] == 3 and isinstance(told["loss"], float)
        for layout in told["layouts"]:
            weights = load_file(client.predict(run, layout, api_name="/adapter"))
            assert weights and any(tensor.any() for name, tensor in weights.items() if "B" in name or "up" in name)
        assert "diffusers" in told["layouts"]
        json.dumps(told)


def _any_run(client: Client) -> str:
    run = client.predict("demo", "demo/style-lora.yaml", {"train.steps": 2}, api_name="/start")["run"]
    wait_for(client, run, ("finished",))
    return run
