"""Captions of sound by transformers' audio-text-to-text models with a chat template: Qwen2-Audio and its like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoModelForMultimodalLM

from ..device import Device
from ..errors import UserError
from . import models, prompts
from .captioner import Asked, Said, Subject


class Audio:
    """Hears the first seconds of a sound, as many as the model's window takes (30 for Whisper-like ones)."""

    kinds = frozenset({"audio"})
    stills = 0

    def __init__(self, target: str, config: Any) -> None:
        self.name, self.config = target, config
        self.rate, self.seconds = 16000, 30.0

    def load(self, where: Device, asked: Asked) -> list[str]:
        """See `Captioner`."""
        self.model, self.processor = models.load(AutoModelForMultimodalLM, self.name, where)
        extractor = getattr(self.processor, "feature_extractor", None)
        if extractor is None or not getattr(self.processor, "chat_template", None):
            raise UserError(f"{self.name} cannot be asked about sound (it has no chat template); choose another model.")
        self.rate = int(extractor.sampling_rate)
        self.seconds = float(getattr(extractor, "chunk_length", None) or self.seconds)
        return [f"{self.name} hears the first {self.seconds:g} seconds of each sound."]

    def caption(self, subjects: Sequence[Subject], asked: Asked) -> list[Said]:
        """See `Captioner`."""
        return models.ask(self.model, self.processor, self.inputs(subjects, asked), asked.limit)

    def inputs(self, subjects: Sequence[Subject], asked: Asked) -> Any:
        """What the model is given, as tensors of a batch."""
        content = [{"type": "audio", "audio": ""}, {"type": "text", "text": prompts.sound()}]
        chat = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        sounds = [subject.sound for subject in subjects]
        return self.processor(
            text=[chat] * len(sounds), audio=sounds, sampling_rate=self.rate, padding=True, return_tensors="pt"
        )
