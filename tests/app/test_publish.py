"""`tuner publish` against a stand-in of the Hub: what is sent, what never is, and what is said when it fails."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image, PngImagePlugin

from tests.app.fake_hub import GOOD, READER, FakeHub, environment, hub
from tests.app.helpers import ROOT
from tuner import card, licences, publish
from tuner.errors import UserError
from tuner.events import Journal, follow


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with hub() as made:
        yield made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run over private pictures, with a sample that carries metadata."""
    return finished_run(tmp_path / "home" / "runs" / "2026-11-28-cat", tmp_path / "secret-pictures")


def finished_run(folder: Path, data: Path) -> Path:
    """A run folder as the engine leaves it."""
    (folder / "samples").mkdir(parents=True)
    data.mkdir(exist_ok=True)
    (data / "cat.txt").write_text("a caption that is nobody's business")
    recipe = {
        "name": "cat", "family": "sd1", "source": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "adapter": {"kind": "lora", "rank": 8, "alpha": 8.0}, "data": [{"path": str(data), "trigger": "sks cat"}],
        "media": {"resolutions": [512]}, "train": {"steps": 40, "lr": 1e-4, "batch": 2, "seed": 3},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    hidden = PngImagePlugin.PngInfo()
    hidden.add_text("where", str(data))
    Image.new("RGB", (64, 48), (200, 40, 40)).save(folder / "samples" / "step-000040-0.png", pnginfo=hidden)
    out = folder / "export" / "diffusers" / "pytorch_lora_weights.safetensors"
    out.parent.mkdir(parents=True)
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    out.write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "export" / "notes.txt").write_text("not to be sent")
    journal = Journal(folder / "events.jsonl")
    journal("started", pid=1, born=0.0, from_step=0, steps=40, name="cat", family="sd1")
    journal("phase", name="cache pictures", done=12, of=12)
    journal("step", step=40, of=40, loss=0.1)
    journal("sample", step=40, files=[{"prompt": 'sks cat: a |"hat"', "file": "samples/step-000040-0.png"}])
    journal("finished", step=40, seconds=4.0)
    journal.close()
    return folder


def tuner(arguments: list[str], extra: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: huggingface_hub reads its settings when it is imported."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **extra}
    command = [sys.executable, "-m", "tuner", "publish", *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)


def send(run: Path, fake: FakeHub, token: str = GOOD, *more: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Publish to me/cat with the journal in a folder of its own."""
    job = run.parents[2] / "job"
    extra = environment(fake, token, str(run.parents[2] / "hf"))
    return tuner([str(run), "--repo", "me/cat", "--job", str(job), *more], extra), job


def test_what_is_shown_is_what_is_sent_and_private(run: Path, fake: FakeHub) -> None:
    shown, _ = send(run, fake, "", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert fake.asked == []
    listed = json.loads(shown.stdout)
    done, job = send(run, fake)
    assert done.returncode == 0, done.stderr
    assert fake.private == {"me/cat": True} and fake.messages == ["Upload with Tuner"]
    sent = fake.files["me/cat"]
    assert {f["name"]: f["size"] for f in listed["files"]} == {name: len(data) for name, data in sent.items()}
    assert set(sent) == {"README.md", "pytorch_lora_weights.safetensors", "samples/0.png"}
    assert sent["README.md"].decode() == listed["card"]
    last = follow(job / "events.jsonl")[0][-1]
    assert last["kind"] == "finished" and last["url"] == f"{fake.url}/me/cat"


def test_nothing_private_leaves(run: Path, fake: FakeHub) -> None:
    send(run, fake)
    everything = b"".join(fake.files["me/cat"].values())
    for word in (b"secret-pictures", str(run.parents[2]).encode(), b"nobody's business"):
        assert word not in everything
    picture = Image.open(io.BytesIO(fake.files["me/cat"]["samples/0.png"]))
    assert picture.info == {} and picture.getpixel((5, 5)) == (200, 40, 40)


def test_the_card_reads_back(run: Path, tmp_path: Path) -> None:
    request = publish.Request(run, "me/cat")
    text = publish.pack(request, tmp_path / "job").card
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (head["base_model_relation"], head["library_name"]) == ("adapter", "diffusers")
    assert (head["pipeline_tag"], head["license"]) == ("text-to-image", "creativeml-openrail-m")
    assert head["instance_prompt"] == "sks cat" and "template:sd-lora" in head["tags"]
    assert head["widget"] == [{"text": 'sks cat: a |"hat"', "output": {"url": "samples/0.png"}}]
    assert "<Gallery />" in text and 'load_lora_weights("me/cat"' in text and "| Rank | 8 |" in text
    assert "| Items in the data set | 12 |" in text


def test_a_restricted_licence_is_named_and_linked() -> None:
    recipe = {"family": "flux1", "adapter": {"kind": "lora"}}
    dev = card.write(card.Facts("me/x", recipe, "black-forest-labs/FLUX.1-dev"))
    head = yaml.safe_load(dev.split("---\n")[1])
    assert head["license"] == "other" and head["license_name"] == "flux-1-dev-non-commercial-license"
    assert head["license_link"] == "https://huggingface.co/black-forest-labs/FLUX.1-dev"
    schnell = card.write(card.Facts("me/x", recipe, "black-forest-labs/FLUX.1-schnell"))
    assert yaml.safe_load(schnell.split("---\n")[1])["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("token", "said"),
    [("hf_wrongTokenWrongToken", "does not know this token"), (READER, "may not write to me/cat"), ("", "no token")],
)
def test_a_refusal_is_a_sentence(run: Path, fake: FakeHub, token: str, said: str) -> None:
    done, job = send(run, fake, token)
    last = follow(job / "events.jsonl")[0][-1]
    assert done.returncode == 1 and last["kind"] == "failed" and said in last["error"]
    assert "Traceback" not in done.stderr and fake.files == {}


def test_an_existing_repository_is_left_alone_unless_asked(run: Path, fake: FakeHub) -> None:
    fake.files["me/cat"] = {}
    done, _ = send(run, fake)
    assert done.returncode == 1 and "me/cat exists already" in done.stderr and fake.files["me/cat"] == {}
    done, _ = send(run, fake, GOOD, "--update")
    assert done.returncode == 0 and "README.md" in fake.files["me/cat"]


def test_too_large_and_offline(run: Path, fake: FakeHub) -> None:
    fake.full = True
    done, job = send(run, fake)
    assert "too large" in follow(job / "events.jsonl")[0][-1]["error"] and done.returncode == 1
    gone = FakeHub()
    done, job = send(run, gone)
    assert "cannot be reached" in follow(job / "events.jsonl")[0][-1]["error"] and done.returncode == 1


STAGES = ("create", "preupload", "batch", "store", "commit")
ANSWERS = {401: "does not know this token", 403: "may not write to", 409: "", 413: "too large", 429: "slow down",
           503: "answered with an error (503)", 0: "cannot be reached"}  # fmt: skip
ALL = """
import json, sys, time
from pathlib import Path
from tuner import publish
from tuner.errors import UserError
time.sleep = lambda seconds: None  # huggingface_hub waits before it tries again
run, said = Path(sys.argv[1]), {}
for repo in json.loads(sys.argv[2]):
    try:
        publish.main(publish.Request(run, repo), run.parents[2] / "jobs" / repo.split("/")[1])
    except UserError as error:
        said[repo] = str(error)
print(json.dumps(said))
"""


def test_whatever_the_hub_answers_at_whatever_stage_is_told_truly(run: Path, fake: FakeHub) -> None:
    """A sentence with the way out, and what is left on the Hub: never a word of success, never a traceback."""
    fake.breaks = {f"me/{stage}-{status}": (stage, status) for stage in STAGES for status in ANSWERS}
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment(fake, GOOD, str(run.parents[2] / "hf"))}
    command = [sys.executable, "-c", ALL, str(run), json.dumps(list(fake.breaks))]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert set(said) == set(fake.breaks), "some were said to be done"
    for repo, (stage, status) in fake.breaks.items():
        assert ANSWERS[status] in said[repo], (repo, said[repo])
        assert "Somebody else changed" in said[repo] or "exists already" in said[repo] or status != 409
        lost = stage == "commit" and status in (503, 0)
        assert ("may be there all the same" in said[repo]) is lost, said[repo]
        assert ("is still empty" in said[repo]) is (stage != "create" and not lost), said[repo]
        kinds = [e["kind"] for e in follow(run.parents[2] / "jobs" / repo.split("/")[1] / "events.jsonl")[0]]
        assert kinds[-1] == "failed" and "finished" not in kinds and ("made" in kinds) is (stage != "create")
    assert all(not files for files in fake.files.values())
    everything = [p.read_bytes() for p in run.parents[2].rglob("*") if p.is_file()]
    assert not any(GOOD.encode() in data for data in everything) and GOOD not in done.stdout + done.stderr


HOSTILE = {
    "---\nlicense: mit\n---": "--- license: mit ---",
    '": {a: [': '": {a: [',
    "x\u2028y\u0085z": "x y z",
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "a\0b\x1bc": "abc",
    "@`%!&*|>": "@`%!&*|>",
    "\n# Heading\n[x](y)": "# Heading [x](y)",
    "\u202egnp.exe": "gnp.exe",
    "- a\n- b": "- a - b",
    "\u732b \U0001f408 \u00e9": "\u732b \U0001f408 \u00e9",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_breaks_the_card(text: str) -> None:
    """Whatever a trigger, prompt or setting says, the head stays one YAML mapping, and the body the card's own."""
    recipe = {"family": "sd1", "name": text, "adapter": {"kind": "lora", "rank": text},
              "data": [{"path": "/x", "trigger": text}], "train": {"steps": 4, "optimizer": text}}  # fmt: skip
    facts = card.Facts("me/x", recipe, "stable-diffusion-v1-5/stable-diffusion-v1-5", "w.safetensors", 4, 2,
                       ((text, "samples/0.png"),))  # fmt: skip
    told = card.write(facts)
    start, head, body = re.split(r"^---\n", told, maxsplit=2, flags=re.M)
    values = yaml.safe_load(head)
    assert start == "" and values["license"] == "creativeml-openrail-m" and values["instance_prompt"] == HOSTILE[text]
    assert values["widget"] == [{"text": HOSTILE[text], "output": {"url": "samples/0.png"}}]
    assert "<script" not in body.replace(f"`{HOSTILE[text]}`", "").split("```")[-1]
    assert not [line for line in body.splitlines() if line.startswith(("# H", "<script", "---", "- a", "license"))]


@pytest.mark.parametrize("token", [GOOD, READER, "hf_wrongTokenWrongToken"])
def test_the_token_is_nowhere(run: Path, fake: FakeHub, token: str) -> None:
    done, _ = send(run, fake, token)
    assert token not in done.stdout + done.stderr and not any(token in url for url in fake.asked)
    for path in run.parents[2].rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path


def test_what_cannot_be_published_says_why(run: Path, tmp_path: Path) -> None:
    for repo in ("cat", "me/../cat", "a/b/c", "me/c at", "me/--x", "https://x/y"):
        with pytest.raises(UserError, match="owner/name"):
            publish.main(publish.Request(run, repo), tmp_path / "job", dry=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no exported adapter"):
        publish.main(publish.Request(tmp_path / "empty", "me/cat"), tmp_path / "job", dry=True)


def test_links_and_headers_give_nothing_away(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"\0" * 16)
    (run / "export" / "linked.safetensors").symlink_to(outside)
    (run / "export" / "config.json").write_text(json.dumps({"_name_or_path": str(tmp_path), "rank": 4}))
    parcel = publish.pack(publish.Request(run, "me/cat"), tmp_path / "job")
    sent = {part.name: part.path.read_text() for part in parcel.parts if part.name.endswith(".json")}
    assert json.loads(sent["config.json"]) == {"rank": 4}
    assert "linked.safetensors" not in {part.name for part in parcel.parts}
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    header = json.dumps({"__metadata__": {"from": f"{tmp_path}/home/runs/x"}}).encode()
    (run / "export" / "told.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match=r"told\.safetensors names a folder"):
        publish.pack(publish.Request(run, "me/cat"), tmp_path / "job")


def test_an_export_is_sent_in_place_of_the_runs_own_files(run: Path, tmp_path: Path) -> None:
    """A checkpoint that was exported on its own: its files, its step, and the samples up to it."""
    chosen = tmp_path / "job" / "export" / "comfyui" / "cat.safetensors"
    chosen.parent.mkdir(parents=True)
    header = json.dumps({"__metadata__": {"format": "pt", "ss_steps": "20"}}).encode()
    chosen.write_bytes(struct.pack("<Q", len(header)) + header)
    request = publish.Request(run, "me/cat", files=tmp_path / "job" / "export")
    parcel = publish.pack(request, tmp_path / "parcel")
    assert [part.name for part in parcel.parts] == ["README.md", "comfyui/cat.safetensors"]
    assert "| Steps | 20 |" in parcel.card and "<Gallery />" not in parcel.card
    with pytest.raises(UserError, match="--files is"):
        publish.main(publish.Request(run, "me/cat", files=tmp_path), tmp_path / "other", dry=True)


def test_a_terminal_is_told_without_a_model(run: Path) -> None:
    """Uploading has neither family nor device to tell of."""
    from tuner.console import sentence

    assert sentence({"kind": "started", "name": "publish", "from_step": 0}) == ""


def test_the_table_of_licences_knows_every_family() -> None:
    from tuner import families

    for name in families.names():
        family = families.get(name)
        assert licences.FAMILIES[name][:2] == (family.title, family.modality)
    known = {(name, base) for name in families.names() for base in families.get(name).sources.values()}
    assert set(licences.EXCEPTIONS) <= known
    assert set(licences.OWNERS) == set(licences.FAMILIES)


@pytest.mark.parametrize(
    ("family", "base", "name"),
    [
        ("sd3", "stabilityai/stable-diffusion-3.5-medium", "stabilityai-ai-community"),
        ("stable_cascade", "stabilityai/stable-cascade-prior", "stable-cascade-nc-community"),
        ("hunyuan_video15", "tencent/HunyuanVideo-1.5", "tencent-hunyuan-community"),
        ("flux2", "black-forest-labs/FLUX.2-klein-base-9B", "flux-non-commercial-license"),
        ("ltx2", "Lightricks/LTX-2", "ltx-2-community-license-agreement"),
        ("auraflow", "purplesmartai/pony-v7-base", "pony-license"),
        ("sdxl", "somebody/their-finetune", "see-base-model"),
    ],
)
def test_licences_have_the_names_of_the_makers_cards(family: str, base: str, name: str) -> None:
    """Read in the cards on the Hub, or in others' cards that repeat them; a fine-tune's terms are never guessed."""
    found = licences.of(family, base)
    assert found is not None and (found.tag, found.name) == ("other", name)
    told = yaml.safe_load(card.write(card.Facts("me/x", {"family": family}, base)).split("---\n")[1])
    assert told["license_name"] == name and told["license_link"] == f"https://huggingface.co/{base}"
