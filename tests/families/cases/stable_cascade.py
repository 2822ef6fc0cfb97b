"""Stable Cascade, stage C."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMWuerstchenScheduler, StableCascadeDecoderPipeline, StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import EfficientNet_V2_S_Weights, efficientnet_v2_s
from torchvision.transforms.functional import normalize
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from tests.families.case import Case, Rig, Shape, generator
from tests.tiny import clip_encoder, clip_tokenizer, index, save, write
from tuner.types import Media, Noised, expand

WIDTH, POOLED, PICTURE = 32, 24, 12
LAYER = ["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]


def build_encoder(path: Path, channels: int) -> None:
    """The published architecture, whose file says nothing of its sizes: 20 M random weights, written in half precision.

    Its normalisations are given statistics of pictures, without which 40 layers leave nothing to encode.
    """
    backbone = efficientnet_v2_s(weights=None).features.train()
    mapper = nn.Sequential(nn.Conv2d(1280, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=False)).train()
    for module in (*backbone.modules(), *mapper.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
    with torch.no_grad():
        for i in range(2):
            coarse = torch.randn(4, 3, 4, 4, generator=generator(i))
            mapper(backbone(nn.functional.interpolate(coarse, (96, 96), mode="bicubic")))
    state = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    state |= {f"mapper.{k}": v for k, v in mapper.state_dict().items()}
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)


def common(folder: Path) -> dict[str, str]:
    """What both halves have."""
    clip_tokenizer(folder / "tokenizer", pad="<|endoftext|>")
    clip_encoder(folder / "text_encoder", WIDTH, "gelu", projection=POOLED)
    schedule = {"_class_name": "DDPMWuerstchenScheduler", "s": 0.008, "scaler": 1.0}
    write(folder / "scheduler" / "scheduler_config.json", schedule)
    return {
        "scheduler": "diffusers.DDPMWuerstchenScheduler",
        "text_encoder": "transformers.CLIPTextModelWithProjection",
        "tokenizer": "transformers.CLIPTokenizerFast",
    }


def build_prior(folder: Path, **prior: Any) -> None:
    """Stage C; `image_encoder` may be missing, as here."""
    shape = {
        "in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 16, "patch_size": 1,
        "conditioning_dim": 32, "block_out_channels": [96, 96], "num_attention_heads": [4, 4],
        "down_num_layers_per_block": [1, 1], "up_num_layers_per_block": [1, 1],
        "down_blocks_repeat_mappers": [1, 1], "up_blocks_repeat_mappers": [1, 1],
        "block_types_per_layer": [LAYER, LAYER], "clip_text_in_channels": WIDTH, "clip_text_pooled_in_channels": POOLED,
        "clip_image_in_channels": PICTURE, "clip_seq": 4, "kernel_size": 3, "dropout": [0.1, 0.1], "self_attn": True,
        "timestep_conditioning_type": ["sca", "crp"], "switch_level": [False],
    }  # fmt: skip
    save(StableCascadeUNet(**{**shape, **prior}), folder / "prior")
    parts = index(
        "StableCascadePriorPipeline",
        **common(folder),
        prior="diffusers.StableCascadeUNet",
        feature_extractor=None,
        image_encoder=None,
    )
    write(folder / "model_index.json", {**parts, "resolution_multiple": 42.67, "_diffusers_version": "0.27.0.dev0"})


def build_second(folder: Path, channels: int = 4) -> None:
    """Stages B and A, and the encoder at the top, as in the Hub's repository."""
    parts = index(
        "StableCascadeDecoderPipeline",
        **common(folder),
        decoder="diffusers.StableCascadeUNet",
        vqgan="wuerstchen.PaellaVQModel",
    )
    decoder = StableCascadeUNet(
        in_channels=4, out_channels=4, timestep_ratio_embedding_dim=16, patch_size=2, conditioning_dim=16,
        block_out_channels=[16, 16], num_attention_heads=[-1, 2], down_num_layers_per_block=[1, 1],
        up_num_layers_per_block=[1, 1], down_blocks_repeat_mappers=[1, 1], up_blocks_repeat_mappers=[1, 1],
        block_types_per_layer=[LAYER[:2], LAYER], clip_text_pooled_in_channels=POOLED, clip_seq=4,
        effnet_in_channels=channels, pixel_mapper_in_channels=3, kernel_size=3, dropout=[0, 0.1],
        self_attn=True, timestep_conditioning_type=["sca"],
    )  # fmt: skip
    save(decoder, folder / "decoder")
    vqgan = PaellaVQModel(levels=2, bottleneck_blocks=1, embed_dim=16, latent_channels=4, num_vq_embeddings=32)
    save(vqgan, folder / "vqgan")
    write(folder / "model_index.json", {**parts, "latent_dim_scale": 10.67, "_diffusers_version": "0.27.0.dev0"})
    build_encoder(folder / "effnet_encoder.safetensors", channels)


class StableCascade(Case):
    """Stage C with the second half in its own folder."""

    name = family = "stable_cascade"
    shapes = (Shape(128, 128), Shape(256, 128))
    overfit_shape = Shape(128, 128)
    overfit_steps, overfit_lr = 300, 3e-3
    # the schedule begins at alpha 1e-4, where an error of the first answer is made a hundred times larger: it takes a
    # network that is wide beside its latent, and steps enough to lose that error again
    sampling_steps = 50
    millions, tolerance = 3600, 50  # published as 3.6B
    layers = {"default": 64 * 4, "attention+feed-forward": 64 * 6, "all-linear": 64 * 10 + 2}

    def build(self, folder: Path) -> None:
        build_prior(folder)
        build_second(folder / "second")
        # both halves are published with one and the same text encoder
        shutil.copytree(folder / "text_encoder", folder / "second" / "text_encoder", dirs_exist_ok=True)

    def chosen(self, folder: Path) -> dict[str, Any]:
        return {"decoder": str(folder / "second")}

    def real(self) -> nn.Module:
        # convert_stable_cascade.py of diffusers
        return StableCascadeUNet(
            conditioning_dim=2048, clip_text_in_channels=1280, clip_text_pooled_in_channels=1280,
            clip_image_in_channels=768, clip_seq=4, switch_level=(False,),
        )  # fmt: skip

    def cells(self, rig: Rig, shape: Shape) -> tuple[int, ...]:
        return rig.denoiser.config.in_channels, -(-shape.height * 100 // 4267), -(-shape.width * 100 // 4267)

    def time(self, rig: Rig, i: int) -> Tensor:
        return rig.official.scheduler.timesteps[i]

    def output(self, out: Any) -> Tensor:
        return out.image_embeddings if hasattr(out, "image_embeddings") else super().output(out)

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        """What torchvision itself makes of the picture: nothing in diffusers encodes it."""
        state = load_file(rig.folder / "second" / "effnet_encoder.safetensors")
        network = efficientnet_v2_s(weights=None)
        network.features.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith("backbone.")})
        published = EfficientNet_V2_S_Weights.IMAGENET1K_V1.transforms()
        assert media.pixels is not None
        with torch.no_grad():
            pictures = normalize((self.smaller(media.pixels) + 1) / 2, published.mean, published.std)
            features = network.features.eval()(pictures)
            z = nn.functional.conv2d(features, state["mapper.0.weight"].float())
            mean, variance = state["mapper.1.running_mean"].float(), state["mapper.1.running_var"].float()
            return (z - mean.reshape(-1, 1, 1)) / (variance + 1e-5).sqrt().reshape(-1, 1, 1)

    def smaller(self, pixels: Tensor) -> Tensor:
        """32 pixels per cell."""
        height, width = (32 * -(-edge * 100 // 4267) for edge in pixels.shape[-2:])
        return nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)

    def prove_known_answer(self, rig: Rig) -> None:
        """Also that the encoder is torchvision's, exactly: the scheduler ends with alpha 0.9999, a trace of noise."""
        super().prove_known_answer(rig)
        media = self.media(rig, self.shapes[-1], 1)
        with torch.no_grad():
            z = rig.family.encode_media(rig.parts, media)
        torch.testing.assert_close(z, self.round_trip(rig, media), atol=1e-5, rtol=1e-5)

    def prove_answer_parity(self, rig: Rig) -> None:
        """The scheduler draws fresh noise at every step: its mean and deviation are those that our schedule implies."""
        shape = self.shapes[-1]
        raw, fixed = rig.latent(shape, 1), torch.randn(rig.latent(shape, 1).shape, generator=generator(5))
        calls: list[Tensor] = []

        def stub(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            calls.append(kwargs["sample"])
            return (fixed,)

        hook = rig.denoiser.register_forward_hook(stub, with_kwargs=True)
        steps = {"latents": raw, "num_inference_steps": 3, "generator": generator(3)}
        self.run(rig.official, ["a red photo"], shape, **steps)
        hook.remove()
        t, after = self.time(rig, 0)[None], self.time(rig, 1)[None]
        own = rig.parts.network.register_forward_hook(lambda *_: (fixed,))
        with torch.no_grad():
            prediction = rig.family.predict(rig.parts.network, calls[0], t, rig.cond(["a red photo"], shape))
        own.remove()
        objective: Any = rig.objective
        clean = objective.clean(prediction, Noised(calls[0], t, calls[0], calls[0]))
        a, b = (expand(objective.alpha(s), raw) for s in (t, after))
        # the posterior of DDPM (Ho et al. 2020, eq. 7) from cumulated alphas a (now) and b (after)
        mean = (b.sqrt() * (1 - a / b) * clean + (a / b).sqrt() * (1 - b) * calls[0]) / (1 - a)
        deviation = ((1 - a / b) * (1 - b) / (1 - a)).sqrt()
        expected = mean + deviation * torch.randn(raw.shape, generator=generator(3))
        torch.testing.assert_close(calls[1], expected, atol=1e-3, rtol=1e-3)

    def pictured(self, rig: Rig, caption: str, shape: Shape, **settings: Any) -> Tensor:
        """Both official pipelines as their documentation has it, each reading the text for itself."""
        features = self.run(rig.official, [caption], shape, **settings).image_embeddings
        # not by from_pretrained: the index says "wuerstchen", a folder that the pinned diffusers moved and cannot find
        folder = rig.folder / "second"
        second = StableCascadeDecoderPipeline(
            decoder=StableCascadeUNet.from_pretrained(folder / "decoder"),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            text_encoder=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
            scheduler=DDPMWuerstchenScheduler.from_pretrained(folder / "scheduler"),
            vqgan=PaellaVQModel.from_pretrained(folder / "vqgan"),
            latent_dim_scale=10.67,
        )
        second.set_progress_bar_config(disable=True)
        drawn = {"generator": settings["generator"], "output_type": "pt", "guidance_scale": 0.0}
        with torch.no_grad():
            return second(image_embeddings=features, prompt=[caption], num_inference_steps=10, **drawn).images
