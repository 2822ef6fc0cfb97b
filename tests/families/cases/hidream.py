"""HiDream-I1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import HiDreamImageTransformer2DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests import tiny
from tests.families.case import Rig, Shape
from tests.families.solver import Solver

FLUX_VAE = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1159, "scaling_factor": 0.3611}


def llama(tokenizer: Path, encoder: Path) -> None:
    """Llama 3.1's byte-level tokenizer, which puts a start token before every text, and a model of three layers."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    vocab = {token: i for i, token in enumerate([*letters, *special])}
    raw = Tokenizer(models.BPE(vocab, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    start = special[0]
    raw.post_processor = processors.TemplateProcessing(f"{start} $A", special_tokens=[(start, vocab[start])])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=start, eos_token="<|eot_id|>", model_max_length=131072
    )
    fast.save_pretrained(tokenizer)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=vocab[start],
        eos_token_id=vocab["<|eot_id|>"],
        tie_word_embeddings=False,
    )
    tiny.save(LlamaForCausalLM(config), encoder)


class HiDream(Solver):
    """HiDream-I1 Full."""

    name = family = "hidream"
    options = {"max_tokens": 96}
    settings = {"max_sequence_length": 96}
    overfit_steps, overfit_batch = 70, 8
    # 17B by its model card; sizes of the published transformer/config.json
    millions = 17105.7
    layers = {"default": 16 * 8 + 32 * 4, "attention+feed-forward": 448, "all-linear": 448 + 48 * 12 + 49}

    def build(self, folder: Path) -> None:
        tiny.clip_tokenizer(folder / "tokenizer")
        tiny.clip_tokenizer(folder / "tokenizer_2", pad="!")
        tiny.clip_encoder(folder / "text_encoder", 32, "quick_gelu", projection=24, positions=248)
        tiny.clip_encoder(folder / "text_encoder_2", 48, "gelu", projection=40, positions=218)
        tiny.t5_tokenizer(folder / "tokenizer_3")
        tiny.t5_encoder(folder / "text_encoder_3", 48)
        llama(folder / "tokenizer_4", folder / "text_encoder_4")
        tiny.vae(folder / "vae", 4, 3, **FLUX_VAE)
        network = HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            caption_channels=[48, 32],
            text_emb_dim=64,
            num_routed_experts=4,
            num_activated_experts=2,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(32, 32),
            llama_layers=[0, 1, 2, 2],
        )
        tiny.save(network, folder / "transformer")
        schedule = {
            "_class_name": "UniPCMultistepScheduler",
            "flow_shift": 3.0,
            "num_train_timesteps": 1000,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
        }
        tiny.write(folder / "scheduler" / "scheduler_config.json", schedule)
        parts = tiny.index(
            "HiDreamImagePipeline",
            scheduler="diffusers.UniPCMultistepScheduler",
            text_encoder="transformers.CLIPTextModelWithProjection",
            text_encoder_2="transformers.CLIPTextModelWithProjection",
            text_encoder_3="transformers.T5EncoderModel",
            text_encoder_4="transformers.LlamaForCausalLM",
            tokenizer="transformers.CLIPTokenizer",
            tokenizer_2="transformers.CLIPTokenizer",
            tokenizer_3="transformers.T5Tokenizer",
            tokenizer_4="transformers.PreTrainedTokenizerFast",
            transformer="diffusers.HiDreamImageTransformer2DModel",
            vae="diffusers.AutoencoderKL",
        )
        tiny.write(folder / "model_index.json", {**parts, "_diffusers_version": "0.34.0"})

    def real(self) -> nn.Module:
        return HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            caption_channels=[4096, 4096],
            axes_dims_rope=(64, 32, 32),
            llama_layers=[*range(32), *[31] * 16],
        )

    def official(self, folder: Path) -> Any:
        pipe = super().official(folder)
        pipe.text_encoder_4.set_attn_implementation("eager")  # the pipeline wants its attentions
        return pipe

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        # every size is scaled to this area
        pipe.default_sample_size = math.sqrt(shape.width * shape.height) / pipe.vae_scale_factor + 1e-6
        return super().run(pipe, captions, shape, **settings)

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        return (-target,)

    def tokens(self, rig: Rig, shape: Shape) -> int:
        # other than square pictures are padded to the most tokens
        return super().tokens(rig, shape) if shape.width == shape.height else rig.denoiser.max_seq
