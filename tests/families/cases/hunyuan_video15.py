"""HunyuanVideo 1.5."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from tests.families.case import LONG, SHORT, Case, Rig, Shape, smooth
from tests.tiny import QWEN_CHAT, QWEN_SPECIAL, index, save, write
from tuner.family import Request
from tuner.types import Media, Prompt

# Qwen's own way to cut text into words
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def tokenizer(path: Path) -> int:
    """Qwen's tokenizer with the words of the pipeline's own system message, so that the template before a caption is
    about as long as with the real one and the cut after 108 tokens falls where it does there. Returns its size."""
    told = HunyuanVideo15Pipeline._get_mllm_prompt_embeds.__defaults__[2]
    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, min_frequency=1, initial_alphabet=letters, show_progress=False)
    bytewise.train_from_iterator([f"system\n{told}", "user\n", "assistant\n", SHORT, LONG], trainer)
    model = json.loads(bytewise.to_str())["model"]
    write(path / "vocab.json", model["vocab"])
    path.joinpath("merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]), encoding="utf-8"
    )
    plain = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    added = {str(len(model["vocab"]) + i): {"content": t, **plain} for i, t in enumerate(QWEN_SPECIAL)}
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>", "unk_token": None, "bos_token": None, "model_max_length": 131072,
        "add_prefix_space": False, "chat_template": QWEN_CHAT, "errors": "replace", "split_special_tokens": False,
    }  # fmt: skip
    write(path / "tokenizer_config.json", config)
    return len(model["vocab"]) + len(QWEN_SPECIAL)


def said(caption: str) -> str:
    """The longer caption has words in quotes, which the second encoder reads."""
    return f'{caption}; a sign says "SEA" and “open”' if caption == LONG else caption


def clip(shape: Shape, n: int) -> Tensor:
    """[n, 3, F, H, W] of 8-bit values; all start with the same frame, since the pipeline takes one picture."""
    pixels = smooth((n, 3, shape.frames, shape.height, shape.width), 4)
    pixels[:, :, 0] = pixels[0, :, 0]
    return ((pixels + 1) * 127.5).round() / 127.5 - 1


class TextToVideo(Case):
    """Text to video."""

    name = family = "hunyuan_video15"
    options: dict[str, Any] = {"max_tokens": 64}
    no_guidance: dict[str, Any] = {}
    shapes = (Shape(64, 64, 5), Shape(80, 48, 9))
    # the last block's answer about the text is used by nobody
    without_gradient = r"transformer_blocks\.1\.(attn\.(add_q_proj|to_add_out)|ff_context)\."
    overfit_shape = Shape(64, 64, 5)
    overfit_steps, overfit_lr, overfit_batch = 60, 5e-3, 4
    pipeline = "HunyuanVideo15Pipeline"
    millions = 8300.0
    tolerance = 60.0
    layers = {"default": 54 * 8, "attention+feed-forward": 54 * 12, "all-linear": 54 * 14 + 2 * 7}

    def build(self, folder: Path) -> None:
        size = tokenizer(folder / "tokenizer")
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}
        widths = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": size}
        save(
            Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**widths, **heads, rope_parameters=rope)), folder / "text_encoder"
        )
        ByT5Tokenizer().save_pretrained(folder / "tokenizer_2")
        t5 = {"d_model": 24, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 3}
        kinds = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
        save(T5EncoderModel(T5Config(vocab_size=384, **t5, **kinds)), folder / "text_encoder_2")
        # the shortcut needs a last width of at least twice the latent's channels; with four of them all stays small
        save(
            AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1),
            folder / "vae",
        )
        sizes = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2, "num_refiner_layers": 1}
        told = {"text_embed_dim": 32, "text_embed_2_dim": 24, "image_embed_dim": 32, "rope_axes_dim": (4, 6, 6)}
        kind = {"in_channels": 9, "out_channels": 4, "target_size": 64, "task_type": self.kind}
        save(HunyuanVideo15Transformer3DModel(**sizes, **told, **kind), folder / "transformer")
        ClassifierFreeGuidance(guidance_scale=6.0).save_pretrained(folder / "guider")
        schedule = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 5.0}
        write(folder / "scheduler" / "scheduler_config.json", schedule)
        parts = {
            "guider": "diffusers.ClassifierFreeGuidance",
            "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
            "text_encoder": "transformers.Qwen2_5_VLTextModel",
            "text_encoder_2": "transformers.T5EncoderModel",
            "tokenizer": "transformers.Qwen2Tokenizer",
            "tokenizer_2": "transformers.ByT5Tokenizer",
            "transformer": "diffusers.HunyuanVideo15Transformer3DModel",
            "vae": "diffusers.AutoencoderKLHunyuanVideo15",
        }
        whole = index(self.pipeline, **{**parts, **self.more(folder)})
        write(folder / "model_index.json", {**whole, "_diffusers_version": "0.36.0.dev0"})

    kind = "t2v"

    def more(self, folder: Path) -> dict[str, str]:
        """Further parts."""
        return {}

    def real(self) -> nn.Module:
        return HunyuanVideo15Transformer3DModel()

    def official(self, folder: Path) -> Any:
        pipe = super().official(folder)
        pipe.tokenizer_max_length = self.options["max_tokens"]
        pipe.vae.enable_slicing()  # its attention fails on two clips at a time
        return pipe

    def cells(self, rig: Rig, shape: Shape) -> tuple[int, ...]:
        return 4, (shape.frames - 1) // 4 + 1, shape.height // 16, shape.width // 16

    def media(self, rig: Rig, shape: Shape, n: int) -> Media:
        return Media(clip(shape, n), fps=self.fps(rig))

    def prompts(self, rig: Rig, captions: Sequence[str], media: Media, shape: Shape) -> list[Prompt]:
        return [Prompt(said(c)) for c in captions]

    def size(self, shape: Shape) -> dict[str, Any]:
        return {**super().size(shape), "num_frames": shape.frames}

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        """How strongly it is guided is a setting of the pipeline's guider, not of its call."""
        pipe.guider = pipe.guider.new(guidance_scale=settings.pop("guidance_scale", 1.0))
        return super().run(pipe, [said(c) for c in captions], shape, **settings)

    def seen(self, rig: Rig, call: dict[str, Any], shape: Shape) -> Tensor:
        """A first frame's latents and mask stand behind the noisy channels."""
        return call["hidden_states"][:, :4]

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        vae = rig.official.vae
        with torch.no_grad():
            decoded = vae.decode(vae.encode(media.pixels).latent_dist.mode()).sample
        return rig.official.video_processor.postprocess_video(decoded, output_type="pt")

    def tokens(self, rig: Rig, shape: Shape) -> int:
        _, *cells = self.cells(rig, shape)
        return int(torch.tensor(cells).prod())


class ImageToVideo(TextToVideo):
    """Image to video; the pipeline takes the size from the picture."""

    name = "hunyuan_video15-i2v"
    task = "image_to_video"
    pipeline = "HunyuanVideo15ImageToVideoPipeline"
    kind = "i2v"

    def more(self, folder: Path) -> dict[str, str]:
        kinds = {"image_size": 32, "patch_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
        save(
            SiglipVisionModel(SiglipVisionConfig(hidden_size=32, intermediate_size=64, **kinds)),
            folder / "image_encoder",
        )
        SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "feature_extractor")
        return {
            "image_encoder": "transformers.SiglipVisionModel",
            "feature_extractor": "transformers.SiglipImageProcessor",
        }

    def picture(self, shape: Shape) -> Image.Image:
        """What the pipeline is given."""
        first = clip(shape, 1)[0, :, 0]
        return Image.fromarray(((first + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())

    def size(self, shape: Shape) -> dict[str, Any]:
        return {"image": self.picture(shape), "num_frames": shape.frames, "output_type": "pt"}

    def request(self, rig: Rig, caption: str, shape: Shape, steps: int) -> Request:
        return replace(super().request(rig, caption, shape, steps), references=(self.picture(shape),))
