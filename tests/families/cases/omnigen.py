"""OmniGen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import OmniGenTransformer2DModel
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image
from transformers import LlamaTokenizer

from tests import tiny
from tests.families.case import LONG, SHORT, Case, Media, Recorder, Request, Rig, Shape, assert_same, smooth


def tokenizer(path: Path) -> int:
    """Phi-3's byte-fallback BPE with a start token and the tags that OmniGen uses; returns its vocabulary."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;-<>|_/"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters]
    made = LlamaTokenizer(
        vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=131072, add_bos_token=True
    )
    made.add_tokens(["<|user|>", "<|end|>", "<|assistant|>", "<|diffusion|>", "<img>", "</img>"], special_tokens=True)
    made.save_pretrained(path)
    loaded = LlamaTokenizer.from_pretrained(path)
    assert loaded("a red photo").input_ids[0] == 1
    return len(loaded)


class OmniGen(Case):
    """OmniGen from words. Its pipeline always asks with the caption and without it, and has no other way."""

    name = family = "omnigen"
    overfit_shape = Shape(32, 32)
    overfit_steps = 100
    copies = 2
    # 3.8B by its paper (the language model alone; Phi-3 mini); the class's own defaults
    millions = 3762.1
    layers = {"default": 32 * 4, "attention+feed-forward": 32 * 6}

    def build(self, folder: Path) -> None:
        vocab = tokenizer(folder / "tokenizer")
        tiny.vae(folder / "vae", 4, 4, scaling_factor=0.13025)
        network = OmniGenTransformer2DModel(
            in_channels=4,
            hidden_size=64,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=96,
            num_layers=2,
            pad_token_id=0,
            vocab_size=vocab,
            rope_scaling={"short_factor": [1.0 + i / 9 for i in range(8)], "long_factor": [2.0] * 8, "type": "su"},
            pos_embed_max_size=16,
        )
        tiny.save(network, folder / "transformer")
        schedule = {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "invert_sigmas": True,
            "num_train_timesteps": 1,
            "shift": 1.0,
            "use_dynamic_shifting": False,
        }
        tiny.write(folder / "scheduler" / "scheduler_config.json", schedule)
        parts = tiny.index(
            "OmniGenPipeline",
            scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
            tokenizer="transformers.LlamaTokenizerFast",
            transformer="diffusers.OmniGenTransformer2DModel",
            vae="diffusers.AutoencoderKL",
        )
        tiny.write(folder / "model_index.json", {**parts, "_diffusers_version": "0.33.0"})

    def real(self) -> nn.Module:
        return OmniGenTransformer2DModel(rope_scaling={"short_factor": [1.0] * 48, "long_factor": [1.0] * 48})

    def seen(self, rig: Rig, call: dict[str, Any], shape: Shape) -> Tensor:
        return call["hidden_states"].chunk(self.copies)[0]

    def time(self, rig: Rig, i: int) -> Tensor:
        return 1 - rig.official.scheduler.timesteps[i].float()

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        return (-target.repeat(len(call["hidden_states"]) // len(target), 1, 1, 1),)

    def prove_call_parity(self, rig: Rig, shape: Shape) -> None:
        """Item by item and without the padding before it, since the pipeline pads to the longer of the caption and its
        own negative prompt. Places count from the first word: only distances between them reach the answer."""
        captions = [SHORT, LONG]
        raw = rig.latent(shape, len(captions))
        with Recorder(rig.denoiser) as theirs:
            self.run(rig.official, captions, shape, latents=raw, num_inference_steps=3)
        assert len(theirs.calls) == 3
        cond = rig.cond(captions, shape)
        for i, call in enumerate(theirs.calls):
            x = self.seen(rig, call, shape)
            with Recorder(rig.parts.network) as ours, torch.no_grad():
                rig.family.predict(rig.parts.network, x, self.time(rig, i).expand(len(captions)), cond)
            assert ours.calls[0].keys() == call.keys()
            assert_same(items(ours.calls[0], len(captions)), items(call, len(captions)), f"step {i}")
        assert_same(self.seen(rig, theirs.calls[0], shape), raw, "packing")


def items(call: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """What the network is told of each of the first items, without the padding, which the last row does not see."""
    told, pictures = [], iter(call["input_img_latents"])
    for i in range(count):
        pad = int((call["attention_mask"][i, -1] == 0).sum())
        places = call["position_ids"][i, pad:]
        spans = call["input_image_sizes"].get(i, [])
        told.append({
            "x": call["hidden_states"][i],
            "time": call["timestep"][i],
            "ids": call["input_ids"][i, pad:],
            "places": places - places[0],
            "mask": call["attention_mask"][i, pad:, pad:],
            "spans": [[s - pad, e - pad] for s, e in spans],
            "pictures": [next(pictures) for _ in spans],
        })  # fmt: skip
    return told


class Edit(OmniGen):
    """OmniGen with two reference pictures of different size for every item."""

    name = "omnigen-edit"
    task = "edit"
    copies = 3
    no_guidance = {"guidance_scale": 1.0, "img_guidance_scale": 1.0}

    def references(self, n: int) -> tuple[Tensor, ...]:
        """Pictures in whole 8-bit steps, as the pipeline gets them."""
        wide, tall = smooth((n, 3, 32, 48), 4), smooth((n, 3, 48, 32), 3)
        return tuple(((p + 1) * 127.5).round() / 127.5 - 1 for p in (wide, -tall))

    def media(self, rig: Rig, shape: Shape, n: int) -> Media:
        return Media(super().media(rig, shape, n).pixels, references=self.references(n))

    def official(self, folder: Path) -> Any:
        return averaging(super().official(folder))

    def pictures(self, n: int) -> list[list[Any]]:
        """The same as PIL pictures, both of every item."""
        both = [[to_pil_image(p) for p in ((r + 1) * 127.5).round().byte()] for r in self.references(n)]
        return [list(pair) for pair in zip(*both, strict=True)]

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        told = ["<img><|image_1|></img> <img><|image_2|></img> " + c for c in captions]
        return super().run(pipe, told, shape, input_images=self.pictures(len(captions)), **settings)

    def guided(self, rig: Rig) -> dict[str, Any]:
        return {**super().guided(rig), "img_guidance_scale": 1.6}  # its own default

    def request(self, rig: Rig, caption: str, shape: Shape, steps: int) -> Request:
        return replace(super().request(rig, caption, shape, steps), references=tuple(self.pictures(1)[0]))

    def drawn_from_cache(self, rig: Rig, request: Request) -> Tensor:
        with averaged(rig.family):
            return super().drawn_from_cache(rig, request)


def averaging(pipe: Any) -> Any:
    """The pipeline draws references from their posterior; here it takes the mean, as the cache holds it."""

    def mean(pictures: list[Tensor], device: Any = None, dtype: Any = None) -> list[Tensor]:
        return [pipe.vae.encode(p).latent_dist.mode() * pipe.vae.config.scaling_factor for p in pictures]

    pipe.encode_input_images = mean
    return pipe


@contextmanager
def averaged(family: Any) -> Iterator[None]:
    """The same for every pipeline that the family makes."""
    family.pipe = lambda parts: averaging(type(family).pipe(family, parts))
    try:
        yield
    finally:
        del family.pipe
