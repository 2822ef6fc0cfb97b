"""FLUX.2 dev and klein, without and with reference pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLFlux2, Flux2Pipeline, Flux2Transformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import Unigram
from torch import Tensor, nn
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.families.case import Case, Rig, Shape
from tests.families.packed import picture
from tests.tiny import QWEN_VOCAB, index, qwen_tokenizer, save, write
from tuner.family import Request
from tuner.types import Media

SPECIAL = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
]  # fmt: skip
CHAT = (
    "<s>{% for m in messages %}{% if m.role == 'system' %}[SYSTEM_PROMPT]{% for c in m.content %}{{ c.text }}"
    "{% endfor %}[/SYSTEM_PROMPT]{% else %}[INST]{% for c in m.content %}{% if c.type == 'image' %}[IMG]"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}[/INST]{% endif %}{% endfor %}"
)


def mistral(folder: Path) -> None:
    """Mistral 3 with its processor: words of the pipeline's own message, then single letters; padded at the left."""
    words = dict.fromkeys(f"▁{w}" for w in SYSTEM_MESSAGE.split())
    pieces = [*SPECIAL, *words, "▁", *map(chr, range(33, 127))]
    core = Tokenizer(Unigram([(p, -1.0 - i / 9) for i, p in enumerate(pieces)], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, **special, additional_special_tokens=SPECIAL[3:], padding_side="left",
        model_max_length=131072, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    size = {"patch_size": 14, "spatial_merge_size": 2}
    PixtralProcessor(
        image_processor=PixtralImageProcessor(patch_size={"height": 14, "width": 14}), tokenizer=tokenizer,
        chat_template=CHAT, **size,
    ).save_pretrained(folder / "tokenizer")  # fmt: skip
    text = {
        "model_type": "mistral", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "rms_norm_eps": 1e-5, "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 6,
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=SPECIAL.index("[IMG]"))
    save(Mistral3ForConditionalGeneration(config), folder / "text_encoder")


def qwen(folder: Path) -> None:
    """Qwen 3."""
    qwen_tokenizer(folder / "tokenizer")
    config = Qwen3Config(
        vocab_size=QWEN_VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=28, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, bos_token_id=None, eos_token_id=258,
        pad_token_id=256,
    )  # fmt: skip
    save(Qwen3ForCausalLM(config), folder / "text_encoder")


def build(folder: Path, klein: bool) -> None:
    """A tiny checkpoint of one of the two pipelines."""
    (qwen if klein else mistral)(folder)
    levels = {
        "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [8, 16, 16],
    }  # fmt: skip
    vae = AutoencoderKLFlux2(**levels, layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=64)
    vae.bn.running_mean.normal_(0, 0.5)
    vae.bn.running_var.uniform_(0.3, 2.0)
    save(vae, folder / "vae")
    shape = {
        "patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 48, "timestep_guidance_channels": 32, "mlp_ratio": 3.0,
        "axes_dims_rope": (4, 4, 4, 4), "rope_theta": 2000, "guidance_embeds": not klein,
    }  # fmt: skip
    save(Flux2Transformer2DModel(**shape), folder / "transformer")
    schedule = {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0,
        "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    }  # fmt: skip
    write(folder / "scheduler" / "scheduler_config.json", schedule)
    parts = index(
        "Flux2KleinPipeline" if klein else "Flux2Pipeline",
        scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
        text_encoder="transformers.Qwen3ForCausalLM" if klein else "transformers.Mistral3ForConditionalGeneration",
        tokenizer="transformers.Qwen2TokenizerFast" if klein else "transformers.PixtralProcessor",
        transformer="diffusers.Flux2Transformer2DModel",
        vae="diffusers.AutoencoderKLFlux2",
    )
    write(folder / "model_index.json", {**parts, "is_distilled": False} if klein else parts)


class Flux2(Case):
    """FLUX.2 [dev]: Mistral, guidance embedding."""

    name = family = "flux2"
    options = {"max_tokens": 128}
    settings = {"max_sequence_length": 128}
    overfit_steps, overfit_shape = 100, Shape(32, 32)
    millions, tolerance = 32000.0, 500.0  # "32B" (model card)
    layers = {
        "default": 8 * 8 + 48 * 2,
        "attention+feed-forward": 8 * 12 + 48 * 2,
        "all-linear": 8 * 12 + 48 * 2 + 3,
    }

    def build(self, folder: Path) -> None:
        build(folder, klein=False)

    def real(self) -> nn.Module:
        return Flux2Transformer2DModel()  # as in convert_flux2_to_diffusers.py

    def cells(self, rig: Rig, shape: Shape) -> tuple[int, ...]:
        channels, *plane = super().cells(rig, shape)
        return 4 * channels, *plane

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        _, h, w = self.cells(rig, shape)
        return x[:, : h * w].permute(0, 2, 1).unflatten(2, (h, w))

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        # given latents, the pipeline packs them itself
        return (Flux2Pipeline._pack_latents(target),)

    def tokens(self, rig: Rig, shape: Shape) -> int:
        _, h, w = self.cells(rig, shape)
        return h * w


class Flux2Edit(Flux2):
    """FLUX.2 [dev] with two references of different sizes, the same for a batch, as the pipeline has them."""

    name, task = "flux2-edit", "edit"
    references = ((64, 72), (80, 64))

    def media(self, rig: Rig, shape: Shape, n: int) -> Media:
        pictures = [picture(i, *size) for i, size in enumerate(self.references)]
        given = tuple(VaeImageProcessor(do_resize=False).preprocess(p).expand(n, -1, -1, -1) for p in pictures)
        return Media(super().media(rig, shape, n).pixels, references=given)

    def run(self, pipe: Any, captions: Any, shape: Shape, **settings: Any) -> Any:
        pictures = [picture(i, *size) for i, size in enumerate(self.references)]
        return super().run(pipe, captions, shape, image=pictures, **settings)

    def request(self, rig: Rig, caption: str, shape: Shape, steps: int) -> Request:
        pictures = tuple(picture(i, *size) for i, size in enumerate(self.references))
        return replace(super().request(rig, caption, shape, steps), references=pictures)

    def tokens(self, rig: Rig, shape: Shape) -> int:
        rate = rig.family.geometry(rig.source).rate
        return super().tokens(rig, shape) + sum((w // rate) * (h // rate) for w, h in self.references)


class Klein(Flux2):
    """FLUX.2 [klein]: Qwen, no guidance embedding."""

    name = "flux2-klein"
    options = {"max_tokens": 160}
    settings = {"max_sequence_length": 160}
    millions, tolerance = 4000.0, 500.0  # "4B" (model card)
    layers = {
        "default": 5 * 8 + 20 * 2,
        "attention+feed-forward": 5 * 12 + 20 * 2,
        "all-linear": 5 * 12 + 20 * 2 + 3,
    }

    def build(self, folder: Path) -> None:
        build(folder, klein=True)

    def real(self) -> nn.Module:
        size = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
        return Flux2Transformer2DModel(**size, guidance_embeds=False)  # as in convert_flux2_to_diffusers.py


class KleinEdit(Flux2Edit):
    """FLUX.2 [klein] with references."""

    name = "flux2-klein-edit"
    options, settings = Klein.options, Klein.settings
    millions, layers, real = Klein.millions, Klein.layers, Klein.real

    def build(self, folder: Path) -> None:
        build(folder, klein=True)
