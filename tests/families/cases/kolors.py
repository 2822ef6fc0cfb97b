"""Kolors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from torch import Tensor, nn

from tests.families.case import Case, Rig
from tests.tiny import index, save, unet, vae, write

WIDTH = 32


def chatglm_tokenizer(path: Path) -> int:
    """ChatGLM's sentencepiece model with byte fallback; returns the size of its vocabulary."""
    words = io.BytesIO()
    text = ["a red photo", "the photo of a dog, 2 cats and a red house by the sea; it is raining"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=words, model_type="bpe", vocab_size=300, byte_fallback=True,
        character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.model").write_bytes(words.getvalue())
    config = {"tokenizer_class": "ChatGLMTokenizer", "padding_side": "left", "remove_space": False}
    write(path / "tokenizer_config.json", {**config, "do_lower_case": False, "model_max_length": 10**30})
    return sentencepiece.SentencePieceProcessor(model_proto=words.getvalue()).vocab_size() + 9


def chatglm_encoder(path: Path, vocabulary: int) -> None:
    """ChatGLM3's settings: RMS norm, rotary halves, grouped queries."""
    config = ChatGLMConfig(
        num_layers=3,
        padded_vocab_size=vocabulary,
        hidden_size=WIDTH,
        ffn_hidden_size=48,
        kv_channels=8,
        num_attention_heads=4,
        seq_length=512,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=2,
        original_rope=True,
    )
    model = ChatGLMModel(config, empty_init=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name else 0.0))
    save(model, path)


class Kolors(Case):
    """1.0: epsilon on 1100 steps."""

    name = family = "kolors"
    force_zeros = False
    millions = 2579.5  # the published unet's fp16 file has 5.16 GB
    # as SDXL; the projection of the text is outside of the layers that adapters reach
    layers = {"default": 70 * 8, "attention+feed-forward": 70 * 10, "all-linear": 70 * 10 + 22 + 17, "with-conv": 788}

    def build(self, folder: Path) -> None:
        chatglm_encoder(folder / "text_encoder", chatglm_tokenizer(folder / "tokenizer"))
        vae(folder / "vae", 4, 3, scaling_factor=0.13025)
        unet(
            folder / "unet",
            24,
            4,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
            transformer_layers_per_block=[1, 2],
            attention_head_dim=[2, 4],
            use_linear_projection=True,
            encoder_hid_dim=WIDTH,
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        )
        schedule = {
            "_class_name": "EulerDiscreteScheduler",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.014,
            "num_train_timesteps": 1100,
            "prediction_type": "epsilon",
            "timestep_spacing": "leading",
            "interpolation_type": "linear",
            "steps_offset": 1,
            "use_karras_sigmas": False,
        }
        write(folder / "scheduler" / "scheduler_config.json", schedule)
        parts = index(
            "KolorsPipeline",
            scheduler="diffusers.EulerDiscreteScheduler",
            text_encoder="kolors.ChatGLMModel",
            tokenizer="kolors.ChatGLMTokenizer",
            unet="diffusers.UNet2DConditionModel",
            vae="diffusers.AutoencoderKL",
        )
        flags = {"force_zeros_for_empty_prompt": self.force_zeros, "_diffusers_version": "0.30.0.dev0"}
        write(folder / "model_index.json", {**parts, **flags})

    def real(self) -> nn.Module:
        return UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            use_linear_projection=True,
            encoder_hid_dim=4096,
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=5632,
        )

    def time(self, rig: Rig, i: int) -> Tensor:
        return (rig.official.scheduler.timesteps[i] / 1100).float()

    def guided(self, rig: Rig) -> dict[str, Any]:
        # without a negative prompt the pipeline fails where the index forces zeros
        return {**super().guided(rig), "negative_prompt": [""]}


class ForcesZeros(Kolors):
    """An index that forces zeros, which the pipeline cannot sample with; the empty prompt stays text."""

    name = "kolors-zeros"
    force_zeros = True
