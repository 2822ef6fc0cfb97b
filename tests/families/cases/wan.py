"""Wan 2.1 and 2.2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from tests.families.case import SHORT, Case, Recorder, Rig, Shape, cosine, implied_noise, show, smooth
from tests.tiny import T5_VOCAB, index, save, t5_tokenizer, write
from tuner.family import Request
from tuner.types import Media

UNIPC = {
    "_class_name": "UniPCMultistepScheduler", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
    "disable_corrector": [], "final_sigmas_type": "zero", "flow_shift": 3.0, "lower_order_final": True,
    "num_train_timesteps": 1000, "predict_x0": True, "prediction_type": "flow_prediction", "solver_order": 2,
    "solver_type": "bh2", "timestep_spacing": "linspace", "use_flow_sigmas": True,
}  # fmt: skip
# the first twelve of the published 48 channels
MEAN_5B = [-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891]
STD_5B = [0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901]
PUBLISHED = {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "patch_size": (1, 2, 2)}


def clip(shape: Shape, n: int) -> Tensor:
    """[n, 3, F, H, W] of 8-bit values; all start with the same frame, since the pipeline takes one picture."""
    pixels = smooth((n, 3, shape.frames, shape.height, shape.width), 4)
    pixels[:, :, 0] = pixels[0, :, 0]
    return ((pixels + 1) * 127.5).round() / 127.5 - 1


def picture(shape: Shape) -> Image.Image:
    """That frame as a user gives it."""
    first = clip(shape, 1)[0, :, 0]
    return Image.fromarray(((first + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


class Clips(Case):
    """What all of them share: a tiny checkpoint, and a solver whose time is rounded to whole steps for the network."""

    family = "wan"
    options: dict[str, Any] = {"max_tokens": 64}
    settings: dict[str, Any] = {"max_sequence_length": 64}
    shapes = (Shape(32, 32, 5), Shape(48, 32, 9))
    overfit_shape = Shape(32, 32, 5)
    overfit_steps, overfit_lr = 150, 4e-3
    experts = 1
    pipeline = "WanPipeline"
    boundary: float | None = None
    expand: bool | None = None
    flow_shift = 3.0
    network: dict[str, Any] = {}
    by_sigma = False

    def build(self, folder: Path) -> None:
        t5_tokenizer(folder / "tokenizer")
        settings = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        kinds = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
        save(UMT5EncoderModel(UMT5Config(vocab_size=T5_VOCAB, **settings, **kinds)), folder / "text_encoder")
        self.vae(folder / "vae")
        for part in ("transformer", "transformer_2")[: self.experts]:
            save(self.tiny(), folder / part)
        write(folder / "scheduler" / "scheduler_config.json", {**UNIPC, "flow_shift": self.flow_shift})
        parts = {
            "scheduler": "diffusers.UniPCMultistepScheduler",
            "text_encoder": "transformers.UMT5EncoderModel",
            "tokenizer": "transformers.T5TokenizerFast",
            "transformer": "diffusers.WanTransformer3DModel",
            "transformer_2": "diffusers.WanTransformer3DModel" if self.experts == 2 else None,
            "vae": "diffusers.AutoencoderKLWan",
        }
        flags: dict[str, Any] = {} if self.boundary is None else {"boundary_ratio": self.boundary}
        if self.expand is not None:
            flags["expand_timesteps"] = self.expand
        whole = {**index(self.pipeline, **{**parts, **self.more(folder)}), **flags}
        write(folder / "model_index.json", {**whole, "_diffusers_version": "0.35.0.dev0"})

    def more(self, folder: Path) -> dict[str, str | None]:
        """Further parts."""
        return {}

    def vae(self, path: Path) -> None:
        """The autoencoder of all but the 5B, with its real statistics."""
        save(AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1), path)

    def tiny(self) -> nn.Module:
        """A network wide enough to carry its latent."""
        sizes = {"num_attention_heads": 4, "attention_head_dim": 24, "text_dim": 32, "freq_dim": 32, "ffn_dim": 192}
        return WanTransformer3DModel(**PUBLISHED, **sizes, num_layers=2, **self.network)

    def cells(self, rig: Rig, shape: Shape) -> tuple[int, ...]:
        g, vae = rig.family.geometry(rig.source), rig.parts["vae"].config
        frames = (shape.frames - 1) // g.frame_step + 1
        return vae.z_dim, frames, shape.height // g.rate, shape.width // g.rate

    def seen(self, rig: Rig, call: dict[str, Any], shape: Shape) -> Tensor:
        """A first frame's mask and latents stand behind the noisy channels."""
        return call["hidden_states"][:, : rig.parts["vae"].config.z_dim]

    def picture(self, shape: Shape) -> Image.Image:
        """What an image-to-video pipeline is given."""
        return picture(shape)

    def media(self, rig: Rig, shape: Shape, n: int) -> Media:
        return Media(clip(shape, n), fps=self.fps(rig))

    def size(self, shape: Shape) -> dict[str, Any]:
        return {**super().size(shape), "num_frames": shape.frames}

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        if self.task == "image_to_video":
            settings["image"] = picture(shape)
        return super().run(pipe, captions, shape, **settings)

    def request(self, rig: Rig, caption: str, shape: Shape, steps: int) -> Request:
        pictures = (picture(shape),) if self.task == "image_to_video" else ()
        return replace(super().request(rig, caption, shape, steps), references=pictures)

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        vae = rig.official.vae
        with torch.no_grad():
            decoded = vae.decode(vae.encode(media.pixels).latent_dist.mode()).sample
        return rig.official.video_processor.postprocess_video(decoded, output_type="pt")

    def time(self, rig: Rig, i: int) -> Tensor:
        """The network is told whole steps, the solver mixes by the exact sigma."""
        scheduler = rig.official.scheduler
        return (scheduler.sigmas[i] if self.by_sigma else scheduler.timesteps[i] / 1000).float()

    @contextmanager
    def solver(self, rig: Rig) -> Iterator[None]:
        """Take t from the solver's sigmas."""
        self.by_sigma = True
        try:
            yield
        finally:
            self.by_sigma = False

    def prove_answer_parity(self, rig: Rig) -> None:
        with self.solver(rig):
            super().prove_answer_parity(rig)

    def prove_known_answer(self, rig: Rig) -> None:
        with self.solver(rig):
            super().prove_known_answer(rig)


class TextToVideo(Clips):
    """2.1 T2V, 1.3B: 5.68 GB in float32 as published."""

    name = "wan"
    network = {"in_channels": 16}
    quick = True
    millions = 1418.996
    layers = {"default": 30 * 8, "attention+feed-forward": 30 * 10, "all-linear": 30 * 10 + 5}

    def real(self) -> nn.Module:
        return WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30)


class Pictured(Clips):
    """2.1 I2V: first frame as latents and through CLIP; captions of 512 tokens, which the network counts on."""

    name = "wan-i2v"
    task = "image_to_video"
    pipeline = "WanImageToVideoPipeline"
    options: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    network = {"in_channels": 36, "image_dim": 32, "added_kv_proj_dim": 96}
    millions = 16400.0  # 65.6 GB in float32; so rounded is the published figure
    tolerance = 50.0
    layers = {"default": 40 * 10, "attention+feed-forward": 40 * 12, "all-linear": 40 * 12 + 7}

    def more(self, folder: Path) -> dict[str, str | None]:
        kinds = {"hidden_act": "gelu", "image_size": 32, "patch_size": 16, "num_hidden_layers": 3}
        config = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, **kinds)
        save(CLIPVisionModel(config), folder / "image_encoder")
        sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        CLIPImageProcessor(**sizes).save_pretrained(folder / "image_processor")
        return {"image_encoder": "transformers.CLIPVisionModel", "image_processor": "transformers.CLIPImageProcessor"}

    def real(self) -> nn.Module:
        return WanTransformer3DModel(in_channels=36, image_dim=1280, added_kv_proj_dim=5120)


class Experts(Clips):
    """2.2 A14B T2V: `transformer` for early t, `transformer_2` for the rest. This case trains the first."""

    name = "wan-2.2-high"
    network = {"in_channels": 16}
    experts = 2
    boundary = 0.875

    @contextmanager
    def alone(self, rig: Rig) -> Iterator[None]:
        """The official pipeline asks the trained expert at every t; who is asked when is proven in test_wan.py."""
        rig.official.register_to_config(boundary_ratio=2.0 if rig.family.denoiser == "transformer_2" else 0.0)
        try:
            yield
        finally:
            rig.official.register_to_config(boundary_ratio=self.boundary)

    def prove_call_parity(self, rig: Rig, shape: Shape) -> None:
        with self.alone(rig):
            super().prove_call_parity(rig, shape)

    def prove_answer_parity(self, rig: Rig) -> None:
        with self.alone(rig):
            super().prove_answer_parity(rig)

    def prove_known_answer(self, rig: Rig) -> None:
        with self.alone(rig):
            super().prove_known_answer(rig)

    def prove_overfit(self, rig: Rig) -> tuple[float, float]:
        """Each expert is trained on its own range of t only; together they give the item back."""
        low = type(self)()
        low.options = {**self.options, "expert": "low"}
        other, shape = Rig(low, rig.folder), self.overfit_shape
        low.train(other, self.learnable(other, shape), other.cond([SHORT] * self.overfit_batch, shape))
        rig.official.transformer_2.load_state_dict(other.parts.network.state_dict())
        return super().prove_overfit(rig)

    @contextmanager
    def flipped(self, rig: Rig) -> Iterator[None]:
        with ExitStack() as both:
            for network in (rig.official.transformer, rig.official.transformer_2):
                hook = network.register_forward_hook(lambda _, args, out: tuple(-o for o in out))
                both.callback(hook.remove)
            yield


class LowExpert(Experts):
    """The second."""

    name = "wan-2.2-low"
    options: dict[str, Any] = {"max_tokens": 64, "expert": "low"}

    def prove_overfit(self, rig: Rig) -> tuple[float, float]:
        """Trained below the boundary only, it finishes what an exact first expert began."""
        shape = self.overfit_shape
        z = self.learnable(rig, shape)
        self.train(rig, z, rig.cond([SHORT] * self.overfit_batch, shape))
        rig.official.transformer_2.load_state_dict(rig.parts.network.state_dict())
        step = iter(range(1000))

        def knows(call: dict[str, Any]) -> Any:
            x, t = call["hidden_states"], rig.official.scheduler.sigmas[next(step)][None]
            return (rig.objective.noised(z, implied_noise(rig.objective, x, z, t), t).target,)

        with Recorder(rig.official.transformer, knows) as early:
            right = cosine(self.sampled(rig, shape), z)
            assert 0 < len(early.calls) < self.sampling_steps
        step = iter(range(1000))
        with Recorder(rig.official.transformer, knows), Case.flipped(self, rig):
            wrong = cosine(self.sampled(rig, shape), z)
        show(f"{self.name}: overfit cosine {right:.3f}, with the sign flipped {wrong:.3f}")
        assert right >= 0.9
        assert wrong < 0.5
        return right, wrong


class PicturedExperts(Experts):
    """2.2 A14B I2V: no CLIP, another boundary and shift."""

    name = "wan-2.2-i2v"
    task = "image_to_video"
    pipeline = "WanImageToVideoPipeline"
    network = {"in_channels": 36}
    boundary = 0.9
    flow_shift = 5.0
    # one caption of 64 tokens would do here, but so are captions of the real length seen with two experts
    options: dict[str, Any] = {}
    settings: dict[str, Any] = {}

    def more(self, folder: Path) -> dict[str, str | None]:
        return {"image_encoder": None, "image_processor": None}


class Five(Clips):
    """2.2 TI2V-5B: time per token, another autoencoder. 5.0B as published."""

    name = "wan-2.2-5b"
    network = {"in_channels": 12, "out_channels": 12}
    expand = True
    flow_shift = 5.0
    shapes = (Shape(64, 64, 5), Shape(96, 64, 9))
    overfit_shape = Shape(64, 64, 5)
    millions = 4999.788
    layers = TextToVideo.layers

    def vae(self, path: Path) -> None:
        sizes = {"base_dim": 8, "decoder_base_dim": 8, "z_dim": 12, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
        kinds = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
        stats = {"latents_mean": MEAN_5B, "latents_std": STD_5B}
        save(AutoencoderKLWan(**sizes, **kinds, **stats, scale_factor_spatial=16), path)

    def real(self) -> nn.Module:
        sizes = {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30}
        return WanTransformer3DModel(**sizes, in_channels=48, out_channels=48)


class FivePictured(Five):
    """The same weights told a clean first frame, whose time is 0."""

    name = "wan-2.2-5b-i2v"
    task = "image_to_video"
    quick = True

    def official(self, folder: Path) -> Any:
        pipe = WanImageToVideoPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe
