"""transformers models of any kind: opened safely, asked greedily, their answers tidied."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from ..device import Device
from ..errors import UserError
from .captioner import Said

AUDIO = ("audio_config", "sound_config")
INTRODUCTION = re.compile(
    r"^(?:sure[,!.]\s*|certainly[,!.]\s*)?(?:here(?: is|'s) (?:a|the) (?:description|caption)[^:]{0,60}:\s*)?"
    r"(?:(?:description|caption)\s*:\s*)?"
    r"(?:(?:the|this) (?:image|picture|photo|photograph|video|audio|recording) "
    r"(?:shows|depicts|features|displays|captures|presents|contains)\s+)?",
    re.IGNORECASE,
)
THOUGHT = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)
MARKS = re.compile(r"<\|[^<>|]*\|>|</?[a-zA-Z_]+\d*>|\[/?INST\]|\ufffd")
"""What remains of templates: <|im_end|>, </s>, <loc_12>, [INST], and bytes that are no character."""


def config_of(target: str) -> Any:
    """The configuration of a model that can caption. Raises `UserError` for everything else."""
    folder = Path(target).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{target} is no model folder: it has no config.json; give the folder that has it.")
    if not folder.is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", target):
        raise UserError(
            f"{target} is neither a folder nor a Hub id like owner/name; "
            "set --model to basic, florence, qwen, an id or a folder."
        )
    with _plainly(target):
        config = AutoConfig.from_pretrained(target, trust_remote_code=False)
    if not sees(config) and not hears(config):
        raise UserError(
            f"{target} is a model of kind {config.model_type}, which does not describe pictures or sound; "
            "choose an image-text-to-text model, or --model basic."
        )
    return config


def sees(config: Any) -> bool:
    """Whether this is a model that looks at pictures."""
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def hears(config: Any) -> bool:
    """Whether this is a model that listens to sound."""
    return config.model_type in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES and any(hasattr(config, key) for key in AUDIO)


def load(cls: Any, target: str, where: Device) -> tuple[Any, Any]:
    """(model, processor) on a device, float32 on a CPU and bfloat16 elsewhere. Only safetensors, never foreign code."""
    logging.disable_progress_bar()  # ours are the only ones
    dtype = torch.float32 if where.kind == "cpu" else torch.bfloat16
    with _plainly(target):
        processor = AutoProcessor.from_pretrained(target, trust_remote_code=False)
        model = cls.from_pretrained(target, trust_remote_code=False, use_safetensors=True, dtype=dtype)
    model.to(where.torch).eval()
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise UserError(f"{target} has no tokenizer, so that its answers cannot be read; get the whole model.")
    if not model.config.is_encoder_decoder:
        tokenizer.padding_side = "left"  # answers begin where questions end, whatever the company
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
    return model, processor


@contextmanager
def _plainly(target: str) -> Iterator[None]:
    """What goes wrong on opening a model, as a sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        way = "check the folder" if Path(target).expanduser().is_dir() else "check the name and the network"
        raise UserError(
            f"The model {target} cannot be opened ({first}); {way}, or use --model basic, which needs none."
        ) from error


def ask(model: Any, processor: Any, inputs: Any, limit: int) -> list[Said]:
    """Greedy answers to a batch of inputs."""
    inputs = inputs.to(model.device)
    for key, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            inputs[key] = value.to(model.dtype)
    plain = {"temperature": None, "top_p": None, "top_k": None, "early_stopping": False, "length_penalty": 1.0}
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=limit, do_sample=False, num_beams=1, **plain)
    asked = inputs.get("input_ids")
    if asked is not None and out.shape[1] >= asked.shape[1] and torch.equal(out[:, : asked.shape[1]], asked):
        out = out[:, asked.shape[1] :]
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends]) | {processor.tokenizer.eos_token_id}
    texts = processor.tokenizer.batch_decode(out, skip_special_tokens=True)
    first = 1 if model.config.is_encoder_decoder else 0  # their first token is the start, which may be the end's
    rows = (row[first:] for row in out.tolist())
    return [_said(text, not ends.isdisjoint(row)) for text, row in zip(texts, rows, strict=True)]


def _said(text: str, whole: bool) -> Said:
    return Said(tidy(text) if whole else to_last_sentence(tidy(text)), whole)


def tidy(text: str) -> str:
    """An answer without thoughts, marks of templates, quotes and introductions ("The image shows"), on one line."""
    text = MARKS.sub(" ", THOUGHT.sub("", text))
    text = "".join(c for c in text if c.isprintable() or c.isspace())
    text = " ".join(text.split()).removeprefix("assistant ").strip()
    bare = INTRODUCTION.sub("", text, count=1)
    for quote in ('""', "''", "“”"):
        if len(bare) > 1 and bare[0] == quote[0] and bare[-1] == quote[1] and quote[1] not in bare[1:-1]:
            bare = bare[1:-1].strip()
    return bare


def to_last_sentence(text: str) -> str:
    """A text that was cut off, up to its last whole sentence; all of it where there is none."""
    found = list(re.finditer(r"[.!?](?=\s|$)", text))
    return text[: found[-1].end()] if found else text
