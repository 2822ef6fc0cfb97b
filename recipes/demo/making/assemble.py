"""Stage 4 and 5: put the parts together in the Hub layout, with a fresh denoiser or with the trained one."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from making.text import CLIP_WIDTH, T5_WIDTH

LIMIT_MB = 30


def new_denoiser() -> FluxTransformer2DModel:
    """Build the untrained denoiser; every block starts as the identity, so that training is steady from its start."""
    torch.manual_seed(0)
    denoiser = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=7,
        attention_head_dim=32,
        num_attention_heads=8,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    for name, layer in denoiser.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        modulation = name.endswith(("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear"))
        if modulation or name == "proj_out":
            nn.init.zeros_(layer.weight)
        elif "embedder" in name:
            nn.init.normal_(layer.weight, std=0.02)
        else:
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.xavier_uniform_(denoiser.x_embedder.weight)
    nn.init.xavier_uniform_(denoiser.context_embedder.weight)
    return denoiser


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Build the scheduler with the settings of Flux.1 dev."""
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def add_clip_prefix(folder: Path) -> None:
    """Name the CLIP weights as the files on the Hub do, with a leading `text_model.`."""
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    if not any(name.startswith("text_model.") for name in weights):
        save_file({f"text_model.{name}": weight for name, weight in weights.items()}, path, {"format": "pt"})


def load_as_float32(folder: Path) -> None:
    """Make the text encoders load in float32 where no type is asked for, as the other parts do."""
    for part in ("text_encoder", "text_encoder_2"):
        path = folder / part / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def assemble(work: Path) -> None:
    """Write WORK/base-init: the trained autoencoder and text encoders with a fresh denoiser."""
    pipeline = FluxPipeline(
        scheduler=new_scheduler(),
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(work / "text_encoder_2"),
        tokenizer_2=T5TokenizerFast.from_pretrained(work / "tokenizer_2"),
        transformer=new_denoiser(),
    )
    pipeline.save_pretrained(work / "base-init")
    add_clip_prefix(work / "base-init")
    for name in ("vae", "text_encoder", "text_encoder_2", "transformer"):
        count = sum(weight.numel() for weight in getattr(pipeline, name).parameters())
        print(f"{name}: {count / 1e6:.2f} M parameters")


def forget_paths(target: Path) -> None:
    """Take out where the parts were loaded from: folders of the machine that made the model."""
    for path in (target / "model_index.json", target / "transformer" / "config.json", target / "vae" / "config.json"):
        settings = json.loads(path.read_text())
        settings.pop("_name_or_path", None)
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def pack(work: Path, run: Path, target: Path) -> None:
    """Write the base with the denoiser that a run trained, in bfloat16, and check its size."""
    exported = run / "export" / "model"
    trained = exported / "transformer" if (exported / "transformer").is_dir() else exported
    pipeline = FluxPipeline.from_pretrained(
        work / "base-init",
        transformer=FluxTransformer2DModel.from_pretrained(trained, dtype=torch.bfloat16),
        dtype=torch.bfloat16,
    )
    pipeline.save_pretrained(target)
    add_clip_prefix(target)
    load_as_float32(target)
    forget_paths(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 1e6
    print(f"{target}: {size:.1f} MB")
    if size > LIMIT_MB:
        raise SystemExit(f"The base is larger than {LIMIT_MB} MB: make the denoiser smaller.")
