"""Random checkpoints of the real classes in the Hub's layout: a megabyte each, built in a second or two.

`build(family, folder, **variation)` writes one. Configuration values that change behaviour (schedules, latent scale and
shift, padding, special tokens) are those of the published models; only sizes are small. Whatever a fresh module leaves
at zero or one is made random, so that a forgotten bias, scale or normalisation shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLProcessor,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

CLIP_WORDS = ["re", "red</w>"]
CLIP_VOCAB = 256 * 2 + len(CLIP_WORDS) + 2
T5_PIECES = ["▁", "▁a", "▁the", "▁red", "▁photo", "▁of", *"abcdefghijklmnopqrstuvwxyz0123456789.,-'!\"()[]:;?"]
T5_VOCAB = 3 + len(T5_PIECES)
DDPM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}

BUILDERS: dict[str, Callable[..., dict[str, Any]]] = {}


def build(family: str, folder: Path, **variation: Any) -> Path:
    """Write a tiny checkpoint of `family` into `folder` and return it.

    Variations of all families: seed, latent_channels, vae_levels, scheduler (a dict of other scheduler settings,
    such as prediction_type or _class_name). sd1, sdxl: unet_settings (a dict). sdxl: force_zeros. flux1:
    guidance_embeds, transformer_settings (a dict).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(variation.pop("seed", 0))
        index = BUILDERS[family](folder, **variation)
    write(folder / "model_index.json", {**index, "_diffusers_version": "0.30.0"})
    return folder


def builder(family: str) -> Callable[[Callable[..., dict[str, Any]]], Callable[..., dict[str, Any]]]:
    """Decorator: make a function that fills a folder and returns its `model_index.json` known to `build`."""

    def known(fn: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        BUILDERS[family] = fn
        return fn

    return known


def write(path: Path, value: Any) -> None:
    """Write JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def save(module: Any, path: Path) -> None:
    """Save a network after making its constant parameters random."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() > 1 and parameter.std() == 0:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    module.save_pretrained(path)


# -- parts -------------------------------------------------------------------------------------------------------------


def clip_tokenizer(path: Path, pad: str = "<|endoftext|>") -> None:
    """CLIP's byte-level tokenizer as on the Hub (vocab.json and merges.txt), with two merges."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(c + "</w>" for c in letters), *CLIP_WORDS, "<|startoftext|>", "<|endoftext|>"]
    write(path / "vocab.json", {token: i for i, token in enumerate(tokens)})
    (path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n", encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    config = {**special, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "add_prefix_space": False}
    write(path / "tokenizer_config.json", {**config, "do_lower_case": True, "errors": "replace"})
    write(path / "special_tokens_map.json", special)
    assert len(CLIPTokenizer.from_pretrained(path)) == CLIP_VOCAB


def clip_encoder(path: Path, width: int, act: str, projection: int | None = None, positions: int = 77) -> None:
    """A CLIP text encoder with the Hub's key names and its old, wrong eos_token_id of 2, which transformers heeds."""
    config = CLIPTextConfig(
        vocab_size=CLIP_VOCAB,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=positions,
        hidden_act=act,
        projection_dim=projection or width,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    cls = CLIPTextModelWithProjection if projection else CLIPTextModel
    save(cls(config), path)
    file = path / "model.safetensors"
    keys = load_file(file)
    # transformers 5 writes a fresh CLIPTextModel without the prefix that every published file has
    hub = {k if k.startswith(("text_model.", "text_projection.")) else f"text_model.{k}": v for k, v in keys.items()}
    save_file(hub, file, {"format": "pt"})


def t5_tokenizer(path: Path) -> None:
    """T5's unigram tokenizer: a few words, then single letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((p, -1.0 - i / 9) for i, p in enumerate(T5_PIECES))]
    T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512).save_pretrained(path)


def t5_encoder(path: Path, width: int) -> None:
    """A T5 v1.1 encoder."""
    config = T5Config(
        vocab_size=T5_VOCAB,
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    save(T5EncoderModel(config), path)


QWEN_SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<think>", "</think>",
]  # fmt: skip
QWEN_VOCAB = 256 + len(QWEN_SPECIAL)
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def qwen_tokenizer(path: Path) -> None:
    """Qwen's byte-level tokenizer (vocab.json, merges.txt): a token a byte, special tokens, a chat template."""
    write(path / "vocab.json", {token: i for i, token in enumerate(sorted(ByteLevel.alphabet()))})
    (path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    added = {
        str(256 + i): {
            "content": t,
            "special": True,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
        }
        for i, t in enumerate(QWEN_SPECIAL)
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>", "unk_token": None, "bos_token": None, "model_max_length": 131072,
        "add_prefix_space": False, "chat_template": QWEN_CHAT, "errors": "replace", "split_special_tokens": False,
    }  # fmt: skip
    write(path / "tokenizer_config.json", config)
    assert len(Qwen2Tokenizer.from_pretrained(path)) == QWEN_VOCAB


def vae(path: Path, channels: int, levels: int, **config: Any) -> None:
    """An image autoencoder with `levels - 1` halvings."""
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [8, 16, 16, 16][:levels],
    }
    common = {"layers_per_block": 1, "norm_num_groups": 4, "latent_channels": channels, "sample_size": 64}
    save(AutoencoderKL(**blocks, **common, **config), path)


def unet(path: Path, cross: int, latent: int, **config: Any) -> None:
    """A UNet of two levels; `config` overrides or adds settings."""
    settings = {
        "sample_size": 16,
        "in_channels": latent,
        "out_channels": latent,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": cross,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [16, 32],
        "attention_head_dim": 4,
    }
    save(UNet2DConditionModel(**{**settings, **config}), path)


def qwen_processor(path: Path) -> None:
    """Qwen2.5-VL's processor as on the Hub: tokenizer, pictures (patches of 14, merged 2x2) and videos."""
    qwen_tokenizer(path)
    common = {
        "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 16384, "patch_size": 14, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "processor_class": "Qwen2_5_VLProcessor",
    }  # fmt: skip
    write(path / "preprocessor_config.json", {**common, "image_processor_type": "Qwen2VLImageProcessor"})
    write(path / "video_preprocessor_config.json", {**common, "video_processor_type": "Qwen2VLVideoProcessor"})
    assert Qwen2VLProcessor.from_pretrained(path).image_token_id == 256 + QWEN_SPECIAL.index("<|image_pad|>")


def qwen_vl(encoder: Path, width: int = 32) -> None:
    """A Qwen2.5-VL of two layers, text and vision (windows and full attention), for `qwen_tokenizer`'s tokens."""
    token = {name.strip("<|>"): 256 + i for i, name in enumerate(QWEN_SPECIAL)}
    text = {
        "vocab_size": QWEN_VOCAB, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": width // 16, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128000, "bos_token_id": token["endoftext"], "eos_token_id": token["im_end"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": width,
        "fullatt_block_indexes": [1], "window_size": 112, "patch_size": 14,
    }  # fmt: skip
    ids = {f"{name}_token_id": token[f"{name}_pad"] for name in ("image", "video")}
    ends = {f"vision_{end}_token_id": token[f"vision_{end}"] for end in ("start", "end")}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids, **ends)
    save(Qwen2_5_VLForConditionalGeneration(config), encoder)


GEMMA_WORDS = ["▁a", "▁the", "▁red", "▁photo", "▁of", "▁image", "▁prompt"]


def gemma_tokenizer(path: Path) -> int:
    """Gemma's byte-fallback BPE with a start token: a few words, then single characters; returns its vocabulary."""
    pairs = [(word[:i], word[i]) for word in GEMMA_WORDS for i in range(1, len(word))]
    letters = [*"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;-<>'"]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), *letters, *(a + b for a, b in pairs)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    GemmaTokenizer(
        vocab=vocab, merges=list(dict.fromkeys(pairs)), model_max_length=8192, add_bos_token=True
    ).save_pretrained(path)
    loaded = GemmaTokenizer.from_pretrained(path)
    assert loaded("a red photo").input_ids[0] == loaded.bos_token_id
    return len(vocab)


def gemma_encoder(path: Path, width: int, vocab: int) -> None:
    """A Gemma 2 model: soft-capped scores, local attention in every other layer."""
    config = Gemma2Config(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        max_position_embeddings=8192,
    )
    save(Gemma2Model(config), path)


def index(pipeline: str, **parts: str | None) -> dict[str, Any]:
    """`model_index.json`: parts as "library.Class"; None for those left out."""
    return {"_class_name": pipeline, **{k: v.split(".") if v else [None, None] for k, v in parts.items()}}


# -- families ----------------------------------------------------------------------------------------------------------


@builder("sd1")
def sd1(
    folder: Path,
    latent_channels: int = 4,
    vae_levels: int = 3,
    scheduler: dict[str, Any] | None = None,
    unet_settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Stable Diffusion 1.5."""
    clip_tokenizer(folder / "tokenizer")
    clip_encoder(folder / "text_encoder", 32, "quick_gelu")
    vae(folder / "vae", latent_channels, vae_levels, scaling_factor=0.18215)
    unet(folder / "unet", 32, latent_channels, **(unet_settings or {}))
    settings = {
        "_class_name": "PNDMScheduler",
        **DDPM,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        **(scheduler or {}),
    }
    write(folder / "scheduler" / "scheduler_config.json", settings)
    parts = index(
        "StableDiffusionPipeline",
        feature_extractor=None,
        safety_checker=None,
        scheduler=f"diffusers.{settings['_class_name']}",
        text_encoder="transformers.CLIPTextModel",
        tokenizer="transformers.CLIPTokenizer",
        unet="diffusers.UNet2DConditionModel",
        vae="diffusers.AutoencoderKL",
    )
    return {**parts, "requires_safety_checker": True}


@builder("sdxl")
def sdxl(
    folder: Path,
    latent_channels: int = 4,
    vae_levels: int = 3,
    scheduler: dict[str, Any] | None = None,
    unet_settings: dict[str, Any] | None = None,
    force_zeros: bool = True,
) -> dict[str, Any]:
    """Stable Diffusion XL base 1.0."""
    clip_tokenizer(folder / "tokenizer")
    clip_tokenizer(folder / "tokenizer_2", pad="!")
    clip_encoder(folder / "text_encoder", 32, "quick_gelu")
    clip_encoder(folder / "text_encoder_2", 48, "gelu", projection=40)
    vae(folder / "vae", latent_channels, vae_levels, scaling_factor=0.13025, force_upcast=True)
    shape = {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2],
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 40 + 6 * 8,
    }
    unet(folder / "unet", 32 + 48, latent_channels, **{**shape, **(unet_settings or {})})
    settings = {
        "_class_name": "EulerDiscreteScheduler",
        **DDPM,
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "use_karras_sigmas": False,
        "clip_sample": False,
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "trained_betas": None,
        **(scheduler or {}),
    }
    write(folder / "scheduler" / "scheduler_config.json", settings)
    parts = index(
        "StableDiffusionXLPipeline",
        scheduler=f"diffusers.{settings['_class_name']}",
        text_encoder="transformers.CLIPTextModel",
        text_encoder_2="transformers.CLIPTextModelWithProjection",
        tokenizer="transformers.CLIPTokenizer",
        tokenizer_2="transformers.CLIPTokenizer",
        unet="diffusers.UNet2DConditionModel",
        vae="diffusers.AutoencoderKL",
    )
    return {**parts, "force_zeros_for_empty_prompt": force_zeros}


@builder("flux1")
def flux1(
    folder: Path,
    latent_channels: int = 4,
    vae_levels: int = 3,
    scheduler: dict[str, Any] | None = None,
    guidance_embeds: bool = True,
    transformer_settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """FLUX.1 [dev]; [schnell] is guidance_embeds=False, scheduler={"use_dynamic_shifting": False, "shift": 1.0}."""
    clip_tokenizer(folder / "tokenizer")
    clip_encoder(folder / "text_encoder", 32, "quick_gelu")
    t5_tokenizer(folder / "tokenizer_2")
    t5_encoder(folder / "text_encoder_2", 32)
    flux_vae = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1159, "scaling_factor": 0.3611}
    vae(folder / "vae", latent_channels, vae_levels, **flux_vae)
    shape = {
        "patch_size": 1,
        "in_channels": 4 * latent_channels,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "guidance_embeds": guidance_embeds,
        "axes_dims_rope": (4, 6, 6),
    }
    save(FluxTransformer2DModel(**{**shape, **(transformer_settings or {})}), folder / "transformer")
    settings = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        **(scheduler or {}),
    }
    write(folder / "scheduler" / "scheduler_config.json", settings)
    return index(
        "FluxPipeline",
        scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
        text_encoder="transformers.CLIPTextModel",
        text_encoder_2="transformers.T5EncoderModel",
        tokenizer="transformers.CLIPTokenizer",
        tokenizer_2="transformers.T5TokenizerFast",
        transformer="diffusers.FluxTransformer2DModel",
        vae="diffusers.AutoencoderKL",
    )
