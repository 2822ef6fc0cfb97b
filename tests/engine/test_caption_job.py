"""`tuner caption`: tiny random models of the real classes, whose captions stay, and every bad input."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BartConfig,
    BertConfig,
    BertModel,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    RobertaTokenizer,
    WhisperFeatureExtractor,
)

from tuner import caption
from tuner.__main__ import main
from tuner.caption import Asked, Subject, basic, book, models, prompts
from tuner.caption.job import Request
from tuner.caption.job import main as job
from tuner.device import pick
from tuner.events import follow

WORDS = [f"Ġ{a}{b}" for a in ("ba", "do", "ki", "lu", "me", "no", "ra", "su") for b in ("l", "m", "n", "p", "r", "s")]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]  # fmt: skip
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip


def alphabet() -> list[str]:
    return [*sorted(ByteLevel.alphabet()), *WORDS]


def lively(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Weights large enough that answers depend on what is shown."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            words = any(part in name for part in ("embed_tokens", "lm_head", "shared", "word_embeddings"))
            cross = any(part in name for part in ("crossattention", "encoder_attn", "projector"))
            scale = 2.0 if "patch" in name or "convs.0" in name else 1.0 if words or cross else 0.4
            constant = 1.0 if "norm" in name.lower() and p.ndim == 1 else 0.0
            drawn = torch.randn(p.shape, generator=draw) * scale  # drawn in any case: the others keep their values
            p.copy_(torch.zeros(p.shape) if name.endswith("bias") else drawn + constant)
    return model


def qwen_tokenizer() -> Qwen2Tokenizer:
    vocab = {token: n for n, token in enumerate(alphabet())}
    return Qwen2Tokenizer(vocab=vocab, merges=[], eos_token="<|im_end|>", extra_special_tokens=SPECIAL)


def qwen(folder: Path) -> None:
    tokenizer = qwen_tokenizer()
    at = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "eos_token_id": at("<|im_end|>"),
                     "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1],
                                         "mrope_interleaved": True}},
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
                       "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        image_token_id=at("<|image_pad|>"), video_token_id=at("<|video_pad|>"),
        vision_start_token_id=at("<|vision_start|>"), vision_end_token_id=at("<|vision_end|>"),
    )  # fmt: skip
    lively(Qwen3VLForConditionalGeneration(config)).save_pretrained(folder)
    size = {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
    Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16, merge_size=2, temporal_patch_size=2, size=size),
        tokenizer, Qwen3VLVideoProcessor(), chat_template=CHAT,
    ).save_pretrained(folder)  # fmt: skip


def florence(folder: Path) -> None:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet()]
    tokenizer = RobertaTokenizer(
        vocab={token: n for n, token in enumerate(tokens)}, merges=[], extra_special_tokens={"image_token": "<image>"}
    )
    config = Florence2Config(
        text_config=BartConfig(
            vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=512,
            bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
        ).to_dict(),
        vision_config={"depths": [1, 1, 1, 1], "embed_dim": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2],
                       "num_groups": [1, 1, 2, 2], "window_size": 2, "projection_dim": 32, "drop_path_rate": 0.0},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    lively(Florence2ForConditionalGeneration(config)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False, resample=3)
    images.image_seq_length = 5
    Florence2Processor(images, tokenizer).save_pretrained(folder)


def bert_tokenizer() -> BertTokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *(w[1:] for w in WORDS)]
    return BertTokenizer(vocab={token: n for n, token in enumerate(tokens)}, extra_special_tokens=["[DEC]"])


def blip(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    config = BlipConfig(
        text_config={"vocab_size": len(tokenizer), "hidden_size": 32, "encoder_hidden_size": 32, "num_hidden_layers": 2,
                     "num_attention_heads": 4, "intermediate_size": 64, "projection_dim": 16, "bos_token_id": 5,
                     "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 512},
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "image_size": 32, "patch_size": 16, "projection_dim": 16},
        projection_dim=16, image_text_hidden_size=16,
    )  # fmt: skip
    lively(BlipForConditionalGeneration(config)).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)


def qwen_audio(folder: Path) -> None:
    tokenizer = qwen_tokenizer()
    config = Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", "num_mel_bins": 16, "d_model": 32, "encoder_layers": 2,
                      "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "max_source_positions": 1500},
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": len(tokenizer),
                     "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>")},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    lively(Qwen2AudioForConditionalGeneration(config)).save_pretrained(folder)
    Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer, chat_template=CHAT).save_pretrained(folder)


def bert(folder: Path) -> None:
    BertModel(BertConfig(vocab_size=60, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=8)).save_pretrained(folder)  # fmt: skip


BUILDERS = {f.__name__: f for f in (qwen, florence, blip, qwen_audio, bert)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    built: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in built:
            built[name] = tmp_path_factory.mktemp(name)
            BUILDERS[name](built[name])
        return built[name]

    return get


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "workspace"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    sizes, colours = [(64, 64), (96, 40), (40, 96), (64, 64), (50, 70)], ["red", "lime", "blue", "black", "white"]
    for n, (size, colour) in enumerate(zip(sizes, colours, strict=True)):
        image = Image.new("RGB", size, colour)
        image.paste(colours[n - 2], (0, 0, size[0] // 2, size[1] // (n + 1)))
        image.save(folder / f"{n}.png")
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {p.stem: p.read_text(encoding="utf-8", errors="replace") for p in sorted(folder.rglob("*.txt"))}


def notes(folder: Path) -> dict:
    return json.loads((folder / book.BOOK).read_text(encoding="utf-8"))["captions"]


def events(kind: str, tmp_path: Path) -> list[dict]:
    newest = max((tmp_path / "workspace" / "jobs").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    return [e for e in follow(newest / "events.jsonl")[0] if e["kind"] == kind]


def said(tmp_path: Path) -> str:
    return "\n".join(e["text"] for kind in ("note", "warning") for e in events(kind, tmp_path))


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen", "florence", "blip"])
def test_models_of_the_real_classes_caption_a_folder(name, model, pictures, tmp_path):
    """In batches of 3 as one by one; each picture its own text; nothing but captions and their origin is written."""
    before = {p.name: p.read_bytes() for p in pictures.iterdir()}
    command = ["caption", str(pictures), "--model", str(model(name)), "--max-tokens", "12"]
    assert main([*command, "--batch", "3"]) == 0
    together = texts(pictures)
    assert sorted(together) == ["0", "1", "2", "3", "4"] and len(set(together.values())) >= 4, together
    for text in together.values():
        assert text.strip() and not any(mark in text for mark in ("<", "[", "assistant", "\ufffd"))
    told = events("caption", tmp_path)
    assert [(e["item"], e["text"] + "\n") for e in told] == [(f"{n}.png", together[str(n)]) for n in range(5)]
    assert [(e["done"], e["of"]) for e in told] == [(n, 5) for n in range(1, 6)]
    assert main([*command, "--batch", "1", "--overwrite-auto"]) == 0
    assert texts(pictures) == together
    assert {k: v for k, v in before.items() if (pictures / k).read_bytes() != v} == {}
    assert {p.name for p in pictures.iterdir()} == {*before, *(f"{n}.txt" for n in range(5)), book.BOOK}
    note = notes(pictures)["0.png"]
    assert note["origin"] == "auto" and note["model"] == str(model(name)) and note["purpose"] == "general"
    assert note["sha256"] == hashlib.sha256(together["0"].strip().encode()).hexdigest()


@pytest.mark.parametrize(("name", "differ"), [("qwen", 5), ("florence", 3)])
def test_the_purpose_reaches_the_model(name, differ, model):
    captioner = caption.build(str(model(name)))
    captioner.load(pick(), Asked())
    subject = Subject("a.png", "image", (Image.new("RGB", (64, 64), "red"),))
    ids = {p: captioner.inputs([subject], Asked(p))["input_ids"][0].tolist() for p in prompts.PICTURE}
    assert len({tuple(i) for i in ids.values()}) == differ
    words = captioner.processor.tokenizer.decode(captioner.inputs([subject], Asked("person", "sks"))["input_ids"][0])
    if name == "qwen":
        assert 'whom you call "sks"' in words and words.endswith("<|im_start|>assistant\n")
    else:
        assert "What does the image describe?" in words


def test_without_a_chat_template_it_is_said_that_the_purpose_does_nothing(model, pictures, tmp_path):
    assert main(["caption", str(pictures), "--model", str(model("blip")), "--purpose", "person"]) == 0
    assert "takes no instructions, so that the purpose person has no effect" in said(tmp_path)


def clip(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", 10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for n in range(12):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 64), (20 * n, 255 - 20 * n, 90)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def tone(path: Path, seconds: float = 1.0, pitch: float = 440.0) -> Path:
    samples = (np.sin(np.arange(int(16000 * seconds)) * 2 * np.pi * pitch / 16000) * 9000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
        file.writeframes(samples.tobytes())
    return path


def test_a_video_is_shown_as_stills_in_order(model, tmp_path, monkeypatch):
    folder = tmp_path / "clips"
    folder.mkdir()
    clip(folder / "a.mp4"), tone(folder / "b.wav")
    shown = []
    vision = sys.modules["tuner.caption.vision"].Vision
    original = vision.inputs
    monkeypatch.setattr(vision, "inputs", lambda self, subjects, asked: shown.extend(subjects) or original(
        self, subjects, asked))  # fmt: skip
    assert main(["caption", str(folder), "--model", str(model("qwen")), "--max-tokens", "8"]) == 0
    reds = [image.getpixel((32, 32))[0] for image in shown[0].images]
    assert len(reds) == 4 and reds == sorted(reds) and reds[-1] - reds[0] > 120
    assert sorted(texts(folder)) == ["a"]
    assert "b.wav" in said(tmp_path) and "does not describe a sound" in said(tmp_path)


def test_a_model_that_hears_describes_sound(model, tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    tone(folder / "a.wav"), tone(folder / "b.wav", 2.5, 1500), tone(folder / "c.wav", 0.5, 90)
    Image.new("RGB", (64, 64)).save(folder / "d.png")
    command = ["caption", str(folder), "--model", str(model("qwen_audio")), "--max-tokens", "8", "--purpose", "sound"]
    assert main([*command, "--batch", "3"]) == 0
    together = texts(folder)
    assert sorted(together) == ["a", "b", "c"] and len(set(together.values())) > 1
    assert "hears the first 30 seconds" in said(tmp_path) and "does not describe a picture" in said(tmp_path)
    assert main([*command, "--batch", "1", "--overwrite-auto"]) == 0
    assert texts(folder) == together


def test_captions_that_reach_the_limit_are_said(model, pictures, tmp_path):
    assert main(["caption", str(pictures), "--model", str(model("qwen")), "--max-tokens", "2"]) == 0
    assert "captions were cut at the limit of 2 tokens" in said(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<s>The image shows a cat.</s>", "a cat."),
        ("assistant\nThis picture depicts a red  car<|im_end|>", "a red car"),
        ('"A dog."', "A dog."),
        ('"A" and "B"', '"A" and "B"'),
        ("Sure! Here is a description of the image: a tree", "a tree"),
        ("<think>what is\nit</think>\n\nA tree.", "A tree."),
        ("A sign that reads <3 and A < B", "A sign that reads <3 and A < B"),
        ("The image quality is low", "The image quality is low"),
        ("<loc_12>[INST] a [/INST]", "a"),
    ],
)
def test_answers_are_tidied(text, expected):
    assert models.tidy(text) == expected


def test_a_cut_answer_ends_at_a_sentence():
    assert models.to_last_sentence("A cat. It sits on v1.5 of a") == "A cat."
    assert models.to_last_sentence("a cat on") == "a cat on"


# -- whose caption it is -----------------------------------------------------------------------------------------------


def run(folder: Path, *more: str) -> int:
    return main(["caption", str(folder), "--model", "basic", *more])


def test_what_a_person_wrote_or_edited_is_never_overwritten(pictures, tmp_path):
    (pictures / "1.txt").write_text("mine from the start")
    (pictures / "2.TXT").write_text("mine in capitals")
    (pictures / "3.txt").write_bytes("fünf".encode("latin-1"))
    assert run(pictures, "--trigger", "sks") == 0
    assert {k: v["origin"] for k, v in notes(pictures).items()} == {
        "0.png": "auto", "1.png": "imported", "2.png": "imported", "3.png": "imported", "4.png": "auto",
    }  # fmt: skip
    assert "3 have captions of their own" in said(tmp_path)
    (pictures / "0.txt").write_text("edited")
    (pictures / "1.txt").write_text("edited, too")
    (pictures / "4.txt").write_text(f"\n {texts(pictures)['4']} ")  # spaces at the ends are no edit
    assert run(pictures, "--trigger", "new", "--overwrite-auto") == 0
    assert {k: v["origin"] for k, v in notes(pictures).items()} == {
        "0.png": "person", "1.png": "person", "2.png": "imported", "3.png": "imported", "4.png": "auto",
    }  # fmt: skip
    assert (pictures / "0.txt").read_text() == "edited" and (pictures / "1.txt").read_text() == "edited, too"
    assert (pictures / "2.TXT").read_text() == "mine in capitals" and not (pictures / "2.txt").exists()
    assert (pictures / "3.txt").read_bytes() == "fünf".encode("latin-1")
    assert texts(pictures.parent / "pictures")["4"].startswith("new, ")


def test_automatic_captions_are_kept_unless_asked_and_deleted_ones_come_back(pictures, tmp_path):
    assert run(pictures) == 0
    first = texts(pictures)
    (pictures / "2.txt").unlink()
    assert run(pictures, "--trigger", "sks") == 0
    assert [e["item"] for e in events("caption", tmp_path)] == ["2.png"]
    assert "4 items are captioned already" in said(tmp_path)
    now = texts(pictures)
    assert now.pop("2") == f"sks, {first.pop('2')}" and now == first
    assert run(pictures) == 0 and "nothing to caption" in said(tmp_path)


def test_empty_text_files_and_shared_ones_are_said(pictures, tmp_path):
    (pictures / "0.txt").touch()
    Image.new("RGB", (30, 60), "blue").save(pictures / "1.jpg")
    assert run(pictures) == 0
    assert (pictures / "0.txt").read_text() == ""
    assert "an empty .txt (first: 0.png)" in said(tmp_path) and "share its caption (first: 1.png)" in said(tmp_path)


def test_folders_hidden_files_and_out(pictures, tmp_path):
    (pictures / "sub").mkdir(), (pictures / ".hidden").mkdir()
    for name in ("sub/red-cube_01.png", ".hidden/x.png", ".y.png"):
        Image.new("RGB", (64, 64), "red").save(pictures / name)
    (pictures / "sub" / "loop").symlink_to(pictures)
    (pictures / "3.txt").write_text("mine")
    before = sorted(p.relative_to(pictures) for p in pictures.rglob("*"))
    assert run(pictures, "--out", str(tmp_path / "out")) == 0
    assert sorted(p.relative_to(pictures) for p in pictures.rglob("*")) == before
    assert sorted(texts(tmp_path / "out")) == ["0", "1", "2", "4", "red-cube_01"]
    assert (tmp_path / "out" / "sub" / "red-cube_01.txt").read_text() == "red cube, mostly red, square format\n"
    assert notes(tmp_path / "out")["sub/red-cube_01.png"]["origin"] == "auto"
    assert run(pictures, "--out", str(tmp_path / "out"), "--overwrite-auto", "--trigger", "sks") == 0
    assert all(t.startswith("sks, ") for t in texts(tmp_path / "out").values())


def test_one_file(pictures):
    assert run(pictures / "1.png") == 0
    assert sorted(texts(pictures)) == ["1"]


class Slow:
    """A captioner whose n-th batch does something."""

    name, kinds, stills, rate, seconds = "slow", frozenset({"image"}), 0, 0, 0.0

    def __init__(self, act, at: int) -> None:
        self.act, self.at, self.calls = act, at, 0

    def load(self, where, asked):
        return []

    def caption(self, subjects, asked):
        self.calls += 1
        if self.calls == self.at:
            self.act()
        return [caption.Said(f"text {s.name}") for s in subjects]


def test_the_stop_file_is_honoured_between_batches(pictures, tmp_path, monkeypatch):
    folder = tmp_path / "job"
    slow = Slow(lambda: (folder / "control" / "stop").touch(), 2)
    monkeypatch.setattr("tuner.caption.job.build", lambda model: slow)
    assert job(Request(pictures, batch=2), folder) == 0
    assert sorted(texts(pictures)) == ["0", "1", "2", "3"]
    kinds = [e["kind"] for e in follow(folder / "events.jsonl")[0]]
    assert kinds[0] == "started" and kinds[-1] == "stopped" and kinds.count("caption") == 4
    assert job(Request(pictures, batch=2), folder) == 0
    assert sorted(texts(pictures)) == ["0", "1", "2", "3", "4"]


def test_what_was_said_is_kept_when_memory_runs_out(pictures, tmp_path, monkeypatch, capsys):
    def burst():
        raise torch.OutOfMemoryError("x")

    monkeypatch.setattr("tuner.caption.job.build", lambda model: Slow(burst, 3))
    assert job(Request(pictures, batch=1)) == 1
    assert sorted(texts(pictures)) == ["0", "1"] and notes(pictures).keys() == {"0.png", "1.png"}
    assert "lower --batch" in capsys.readouterr().err


def test_a_kill_between_the_two_writes_leaves_every_origin_known(pictures, monkeypatch):
    """The book is written first: whether the kill comes before or after the text, it knows what is there."""
    assert run(pictures) == 0
    original, calls = book._write, []

    def dies(path, text, folder):
        calls.append(path)
        if len(calls) > 2:  # the book and one caption are written; then nothing more, whoever tries
            raise KeyboardInterrupt
        original(path, text, folder)

    monkeypatch.setattr(book, "_write", dies)
    assert run(pictures, "--trigger", "sks", "--overwrite-auto", "--batch", "5") == 2
    monkeypatch.setattr(book, "_write", original)
    assert run(pictures, "--trigger", "new", "--overwrite-auto") == 0
    assert all(t.startswith("new, ") for t in texts(pictures).values())
    assert {v["origin"] for v in notes(pictures).values()} == {"auto"}


def test_a_large_book_is_written_every_half_per_cent(tmp_path):
    one = book.Book(tmp_path, {f"{n}.png": {"origin": "imported", "sha256": ""} for n in range(1000)})
    due = []
    for n in range(12):
        one.add(f"new{n}.png", tmp_path / f"new{n}.txt", "x", "basic", "general")
        due.append(one.due)
        if one.due:
            one.save()
    assert due == [False] * 5 + [True] + [False] * 5 + [True]


# -- the basic captioner -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a_red-cat (2)", "a red cat"), ("IMG_1234", ""), ("PXL_20240101_123", ""), ("DSC-2", ""), ("a3f9c2d1e5", ""),
        ("WhatsApp Image 2024-01-01 at 10.20.30", ""), ("0001", ""), ("deed of sale", "deed of sale"),
        ("Screenshot", ""), ("3f2504e0-4f89-11d3-9a0c-0305e82c3301", ""), ("mein Hund", "mein Hund"),
    ],
)  # fmt: skip
def test_file_names_that_say_something(name, says):
    assert basic.telling(basic.from_name(f"{name}.png")) == says


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((255, 0, 0), "red"), ((120, 60, 20), "brown"), ((0, 128, 0), "green"), ((20, 20, 20), "black"),
        ((250, 250, 245), "white"), ((120, 120, 125), "grey"), ((255, 220, 40), "yellow"), ((70, 130, 240), "blue"),
        ((255, 120, 190), "pink"), ((130, 40, 200), "purple"), ((255, 140, 0), "orange"), ((40, 200, 200), "turquoise"),
    ],
)  # fmt: skip
def test_colours(rgb, name):
    assert basic.colour(*rgb) == name


def test_basic_says_what_it_measures_and_that_it_is_basic(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    Image.new("RGB", (90, 40), (10, 10, 10)).save(folder / "IMG_1.png")
    half = Image.new("RGB", (40, 90), (200, 30, 30))
    half.paste((30, 60, 220), (0, 0, 40, 45))
    half.save(folder / "two_flags.png")
    with av.open(str(folder / "track01.flac"), "w") as container:
        container.metadata.update({"title": "Morning rain", "genre": "Ambient"})
        stream = container.add_stream("flac", 16000, layout="mono", format="s16")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip(folder / "film.mp4")
    assert run(folder) == 0
    found = texts(folder)
    assert found["IMG_1"] == "black and white, dark, wide format\n"
    assert found["two_flags"] == "two flags, mostly blue and red, tall format\n"
    assert found["track01"] == "Morning rain, Ambient\n"
    assert found["film"].startswith("film, mostly ")
    assert "The basic captioner looks at no content" in said(tmp_path)
    assert run(folder, "--purpose", "style", "--overwrite-auto") == 0
    assert texts(folder)["two_flags"] == "two flags\n" and "nothing to say about IMG_1.png" in said(tmp_path)


# -- bad inputs --------------------------------------------------------------------------------------------------------


def refused(capsys, *command: str) -> str:
    """The one sentence of a refusal."""
    assert main(["caption", *command]) == 1
    text = capsys.readouterr().err.strip()
    text = text.splitlines()[-1] if "Writing model shards" in text else text  # by the test, not by us
    assert text and "Traceback" not in text and "\n" not in text, text
    return text


def test_folders_that_cannot_be_captioned(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "does not exist" in refused(capsys, str(tmp_path / "none"), "--model", "basic")
    assert "has no pictures, videos or sounds" in refused(capsys, str(empty), "--model", "basic")
    (empty / "notes.txt").write_text("x")
    assert "has no pictures, videos or sounds" in refused(capsys, str(empty), "--model", "basic")
    assert "has no pictures" in refused(capsys, str(empty / "notes.txt"), "--model", "basic")
    (empty / "a.png").write_bytes(b"no picture"), (empty / "b.mp4").write_bytes(b"no video")
    assert "None of the 2 items could be read" in refused(capsys, str(empty), "--model", "basic")
    assert "a.png is not a picture" in said(tmp_path) and "b.mp4" in said(tmp_path)
    assert texts(empty) == {"notes": "x"}


def test_one_unreadable_picture_does_not_stop_the_others(pictures, tmp_path):
    (pictures / "1.png").write_bytes(b"")
    assert run(pictures) == 0
    assert sorted(texts(pictures)) == ["0", "2", "3", "4"] and "1.png is empty" in said(tmp_path)


def test_models_that_cannot_caption(model, pictures, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    assert "no model folder: it has no config.json" in refused(capsys, str(pictures), "--model", str(bare))
    assert "neither a folder nor a Hub id" in refused(capsys, str(pictures), "--model", "nonsense")
    assert "cannot be opened" in refused(capsys, str(pictures), "--model", "nobody/nothing")
    assert "kind bert, which does not describe" in refused(capsys, str(pictures), "--model", str(model("bert")))
    assert "cannot describe a picture" in refused(capsys, str(pictures), "--model", str(model("qwen_audio")))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    config = {"model_type": "own", "auto_map": {"AutoConfig": "run.Own", "AutoModelForImageTextToText": "run.Own"}}
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "run.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "cannot be opened" in refused(capsys, str(pictures), "--model", str(foreign))
    assert not (tmp_path / "ran").exists()
    assert texts(pictures) == {}


def test_weights_that_can_hold_programs_are_not_opened(model, pictures, tmp_path, capsys):
    copy = tmp_path / "pickled"
    copy.mkdir()
    for path in model("blip").iterdir():
        if path.suffix != ".safetensors":
            (copy / path.name).write_bytes(path.read_bytes())
    torch.save({}, copy / "pytorch_model.bin")
    assert "cannot be opened" in refused(capsys, str(pictures), "--model", str(copy))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--purpose", "song"], "--purpose is 'song'; it must be one of general, person"),
        (["--purpose", "sound"], "--purpose is sound, but"),
        (["--batch", "0"], "--batch and --max-tokens must be 1 or more"),
        (["--out", "/proc/nowhere"], "choose another folder with --out"),
        (["--job", "/proc/nowhere"], "choose another with --job"),
    ],
)
def test_bad_options(pictures, capsys, options, words):
    assert words in refused(capsys, str(pictures), "--model", "basic", *options)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "no space left to write captions"), (errno.EROFS, "Captions cannot be written")],
)
def test_full_and_read_only_disks(pictures, capsys, monkeypatch, number, words):
    original = Path.replace

    def fails(self, target):
        if Path(target).suffix == ".txt" and len(texts(pictures)) == 2:
            raise OSError(number, os.strerror(number))
        return original(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    assert words in refused(capsys, str(pictures), "--model", "basic", "--batch", "1")
    assert len(texts(pictures)) == 2 and not list(pictures.glob(".*.tmp"))
    monkeypatch.setattr(Path, "replace", original)
    assert run(pictures) == 0 and len(texts(pictures)) == 5


def test_a_damaged_book_is_said(pictures, capsys):
    for text in ("{", "[]", '{"captions": {"0.png": {"origin": "me"}}}'):
        (pictures / book.BOOK).write_text(text)
        assert "is damaged; delete it" in refused(capsys, str(pictures), "--model", "basic")
    assert texts(pictures) == {}


@pytest.mark.long
def test_the_command_in_a_process_of_its_own(pictures, tmp_path):
    """As the app starts it: JSON lines on stdout, and the same in the journal."""
    command = [
        sys.executable,
        "-m",
        "tuner",
        "caption",
        str(pictures),
        "--model",
        "basic",
        "--job",
        str(tmp_path / "j"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["kind"] for e in printed if e["kind"] != "phase"][-6:] == ["caption"] * 5 + ["finished"]
    assert printed == follow(tmp_path / "j" / "events.jsonl")[0]


def test_only_some_are_captioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
    some = tmp_path / "some.list"
    some.write_text("b.png")
    asked = ["caption", str(tmp_path), "--model", "basic", "--only", str(some), "--job", str(tmp_path / "job")]
    assert main(asked) == 0
    assert [p.name for p in sorted(tmp_path.glob("*.txt"))] == ["b.txt"]
    some.write_text("../b.png")
    assert main(asked) == 1
    assert "no such item" in capsys.readouterr().err
