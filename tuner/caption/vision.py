"""Captions by transformers' image-text-to-text models: Qwen3-VL, Florence-2, BLIP, LLaVA and their like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoModelForImageTextToText

from ..device import Device
from ..errors import UserError
from . import models, prompts
from .captioner import Asked, Said, Subject

STILLS = 4


class Vision:
    """Asks by chat template where the processor has one, by task with Florence-2, else shows the picture alone."""

    kinds = frozenset({"image", "video"})
    rate, seconds = 0, 0.0

    def __init__(self, target: str, config: Any) -> None:
        self.name, self.config = target, config
        self.stills = 1

    def load(self, where: Device, asked: Asked) -> list[str]:
        """See `Captioner`."""
        self.model, self.processor = models.load(AutoModelForImageTextToText, self.name, where)
        if getattr(self.processor, "chat_template", None):
            self.stills = STILLS
            return []
        one = "Of a video it sees the picture in the middle only."
        if self.config.model_type == "florence2":
            return [f"Florence-2 takes no instructions; the purpose only chooses how much it tells. {one}"]
        return [f"{self.name} takes no instructions, so that the purpose {asked.purpose} has no effect. {one}"]

    def caption(self, subjects: Sequence[Subject], asked: Asked) -> list[Said]:
        """See `Captioner`."""
        return models.ask(self.model, self.processor, self.inputs(subjects, asked), asked.limit)

    def inputs(self, subjects: Sequence[Subject], asked: Asked) -> Any:
        """What the model is given, as tensors of a batch."""
        if getattr(self.processor, "chat_template", None):
            chats = [self._chat(subject, asked) for subject in subjects]
            return self.processor.apply_chat_template(
                chats,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        images = [subject.images[0] for subject in subjects]
        if self.config.model_type == "florence2":
            text = [prompts.TASKS[asked.purpose]] * len(images)
            return self.processor(text=text, images=images, padding=True, return_tensors="pt")
        try:
            return self.processor(images=images, return_tensors="pt")
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.name} has no chat template and does not take a picture alone ({error}); choose another model."
            ) from error

    def _chat(self, subject: Subject, asked: Asked) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = [{"type": "image", "image": image} for image in subject.images]
        text = prompts.picture(asked.purpose, len(subject.images), asked.trigger)
        return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
