"""AuraFlow."""

from __future__ import annotations

from pathlib import Path

from diffusers import AuraFlowTransformer2DModel
from torch import nn
from transformers import LlamaTokenizer, UMT5Config, UMT5EncoderModel

from tests.families.case import Case
from tests.tiny import index, save, vae, write


def tokenizer(path: Path) -> int:
    """Llama's byte-pair tokenizer with an end but no start, as Pile-T5 has it: a few merges. Returns the vocabulary."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *map(chr, range(33, 127))]
    merges = [("▁", "a"), ("r", "e"), ("re", "d"), ("▁", "p")]
    pieces += ["".join(pair) for pair in merges]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    made = LlamaTokenizer(
        vocab=vocab, merges=merges, bos_token="<s>", eos_token="</s>", pad_token="<pad>", add_bos_token=False,
        add_eos_token=True, padding_side="right", model_max_length=512,
    )  # fmt: skip
    made.save_pretrained(path)
    return len(made)


class AuraFlow(Case):
    """Static shift, learnt positions, register tokens before the text."""

    name = family = "auraflow"
    options = {"max_tokens": 80}
    settings = {"max_sequence_length": 80}
    overfit_steps, overfit_lr = 100, 5e-3
    millions, tolerance = 6800.0, 60.0  # "6.8B" (fal's announcement), to its last digit
    layers = {"default": 4 * 8 + 32 * 4, "attention+feed-forward": 4 * 14 + 32 * 7, "all-linear": 4 * 16 + 32 * 8}

    def build(self, folder: Path) -> None:
        words = tokenizer(folder / "tokenizer")
        config = UMT5Config(
            vocab_size=words, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
        )
        save(UMT5EncoderModel(config), folder / "text_encoder")
        vae(folder / "vae", 4, 3, scaling_factor=0.13025, force_upcast=True)
        shape = {
            "sample_size": 32, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 2,
            "num_single_dit_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
            "caption_projection_dim": 32, "pos_embed_max_size": 196,
        }  # fmt: skip
        network = AuraFlowTransformer2DModel(**shape)
        for name, weight in network.named_parameters():
            if "norm1" in name:  # a fresh network's gates are nearly shut
                weight.data.mul_(4)
        save(network, folder / "transformer")
        schedule = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.73}
        write(folder / "scheduler" / "scheduler_config.json", schedule)
        parts = index(
            "AuraFlowPipeline",
            scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
            text_encoder="transformers.UMT5EncoderModel",
            tokenizer="transformers.LlamaTokenizerFast",
            transformer="diffusers.AuraFlowTransformer2DModel",
            vae="diffusers.AutoencoderKL",
        )
        write(folder / "model_index.json", parts)

    def real(self) -> nn.Module:
        return AuraFlowTransformer2DModel(pos_embed_max_size=9216)  # v0.3: 96x96 places
