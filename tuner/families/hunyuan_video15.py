"""HunyuanVideo 1.5: two streams of clip and text, told the text by Qwen2.5-VL and what stands in quotes by ByT5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import extract_glyph_texts, format_text_input
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..native import Names, Native, renamed
from ..objective import Flow, Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Media, Parts, Prompt
from . import _flux
from ._latents import first_frames, pictures

ATTENTION = r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
FEED_FORWARD = r"transformer_blocks\.\d+\.ff(_context)?\.net\.(0\.proj|2)"
MODULATION = r"transformer_blocks\.\d+\.norm1(_context)?\.linear"
REFINER = (
    r"context_embedder\.token_refiner\.refiner_blocks\.\d+\."
    r"(attn\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)|norm_out\.linear)"
)
GLYPHS = 256
"""Length to which the pipeline pads what stands in quotes."""
NO_PICTURE = 729
"""Picture tokens, all masked, that the pipeline passes where there is no picture."""


REFINER_BLOCK = ("txt_in.individual_token_refiner.blocks.{}.", "context_embedder.token_refiner.refiner_blocks.{}.")
BLOCK = ("double_blocks.{}.", "transformer_blocks.{}.")
ENDS = renamed(
    "",
    "",
    {
        "img_in.proj": "x_embedder.proj",
        "txt_in.input_embedder": "context_embedder.proj_in",
        "byt5_in.fc1": "context_embedder_2.linear_1",
        "byt5_in.fc2": "context_embedder_2.linear_2",
        "byt5_in.fc3": "context_embedder_2.linear_3",
        "vision_in.proj.1": "image_embedder.linear_1",
        "vision_in.proj.3": "image_embedder.linear_2",
        "final_layer.linear": "proj_out",
    },
)
LAST = Native("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True)
MODULATION_NAME = {"adaLN_modulation.1": "norm_out.linear"}
# ComfyUI's files have FLUX's names; musubi's have the original's, where queries, keys and values are apart.
NAMES = Names(
    native=(
        *_flux.TWO_STREAM_ATTENTION,
        *renamed(
            *BLOCK,
            {
                "img_mlp.0": "ff.net.0.proj",
                "img_mlp.2": "ff.net.2",
                "img_mod.lin": "norm1.linear",
                "txt_mlp.0": "ff_context.net.0.proj",
                "txt_mlp.2": "ff_context.net.2",
                "txt_mod.lin": "norm1_context.linear",
            },
        ),
        *renamed(
            *REFINER_BLOCK,
            {
                "self_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "self_attn.proj": "attn.to_out.0",
                "mlp.0": "ff.net.0.proj",
                "mlp.2": "ff.net.2",
                **MODULATION_NAME,
            },
        ),
        *_flux.embedder("time_in", "time_embed.timestep_embedder"),
        *_flux.embedder("txt_in.t_embedder", "context_embedder.time_text_embed.timestep_embedder"),
        *_flux.embedder("txt_in.c_embedder", "context_embedder.time_text_embed.text_embedder"),
        *ENDS,
        LAST,
    ),
    others=(
        *renamed(
            *BLOCK,
            {
                "img_attn_q": "attn.to_q",
                "img_attn_k": "attn.to_k",
                "img_attn_v": "attn.to_v",
                "img_attn_proj": "attn.to_out.0",
                "img_mlp.fc1": "ff.net.0.proj",
                "img_mlp.fc2": "ff.net.2",
                "img_mod.linear": "norm1.linear",
                "txt_attn_q": "attn.add_q_proj",
                "txt_attn_k": "attn.add_k_proj",
                "txt_attn_v": "attn.add_v_proj",
                "txt_attn_proj": "attn.to_add_out",
                "txt_mlp.fc1": "ff_context.net.0.proj",
                "txt_mlp.fc2": "ff_context.net.2",
                "txt_mod.linear": "norm1_context.linear",
            },
        ),
        # version 1's, which ComfyUI goes on reading
        *renamed(
            *BLOCK,
            {
                "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            },
        ),
        *renamed(
            *REFINER_BLOCK,
            {
                "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "self_attn_proj": "attn.to_out.0",
                "mlp.fc1": "ff.net.0.proj",
                "mlp.fc2": "ff.net.2",
                **MODULATION_NAME,
            },
        ),
        *renamed(
            "",
            "",
            {
                "time_in.mlp.0": "time_embed.timestep_embedder.linear_1",
                "time_in.mlp.2": "time_embed.timestep_embedder.linear_2",
                "txt_in.t_embedder.mlp.0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
                "txt_in.t_embedder.mlp.2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
                "txt_in.c_embedder.linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
                "txt_in.c_embedder.linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
            },
        ),
        *ENDS,
        LAST,
    ),
    kohya="others",
    architecture="hunyuan-video-1.5",
    version="hunyuan_video_1_5",
)


class HunyuanVideo15Options(Options):
    """Settings of HunyuanVideo 1.5."""

    max_tokens: int = setting(
        1000,
        "Length to which captions are padded; the padding is masked, so that a shorter one that fits all captions "
        "gives the same answers faster",
        "expert",
        ge=8,
        le=1000,
    )


@register
class HunyuanVideo15(Family):
    """Rectified flow over clips of 4k + 1 frames; a picture is a clip of one frame."""

    name = "hunyuan_video15"
    title = "HunyuanVideo 1.5"
    modality = "video"
    pipelines = {"generate": "HunyuanVideo15Pipeline", "image_to_video": "HunyuanVideo15ImageToVideoPipeline"}
    accepts = ("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline")
    text_parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    further_parts = ("guider",)
    sources = {
        "480p": "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
        "720p": "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v",
        "480p-i2v": "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v",
        "720p-i2v": "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_i2v",
    }
    resolution = 640
    guidance = 6.0
    timesteps = LogitNormal()
    blocks = (Blocks("transformer_blocks", aligned=(Aligned("freqs_cis", dims=(0,)),)),)
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}|{REFINER}",
    }
    names = NAMES
    licence = "Tencent Hunyuan Community"
    size = "8.3B"
    encoders = "Qwen2.5-VL-7B, ByT5; image-to-video: SigLIP"
    Options = HunyuanVideo15Options

    def __init__(self, options: Options | None = None, task: str = "generate") -> None:
        super().__init__(options, task)
        if task == "image_to_video":
            self.media_parts = ("vae", "image_encoder", "feature_extractor")

    def accept(self, source: Source) -> None:
        """See `Family.accept`; text-to-video and image-to-video are different models."""
        super().accept(source)
        if source.pipeline != self.pipeline:
            task = next(task for task, pipeline in self.pipelines.items() if pipeline == source.pipeline)
            raise UserError(
                f"source {source.name} was made for task={task}, not {self.task}; change `task` or `source`."
            )
        if source.config("transformer").get("use_meanflow"):
            raise UserError(
                f"source {source.name} is distilled for few steps (transformer use_meanflow); train the model it was "
                "made from instead and use the result with the distilled one."
            )

    def pipe(self, parts: Parts) -> Any:
        """See `Family.pipe`. The constructor reads the autoencoder's configuration; where that is not loaded, an empty
        one of the published shape stands in."""
        if parts.components.get("vae") is None:
            with torch.device("meta"):
                components = {**parts.components, "vae": AutoencoderKLHunyuanVideo15()}
            parts = Parts(parts.denoiser, components, parts.pipeline)
        return super().pipe(parts)

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        if snr_gamma is not None:
            raise UserError("train.snr_gamma has no meaning for hunyuan_video15; remove it.")
        return Flow()

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`."""
        vae = source.config("vae")
        rate = vae.get("spatial_compression_ratio", 16)
        return Geometry(
            multiple=rate * source.config("transformer").get("patch_size", 1),
            rate=rate,
            frame_step=vae.get("temporal_compression_ratio", 4),
            fps=24.0,
            frames=121,
        )

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; of the second encoder only what stands in quotes."""
        tokenizer = tokenizers["tokenizer"]

        def length(text: str) -> int:
            chat = format_text_input([text], "")
            return len(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True).input_ids[0])

        # the pipeline cuts off what the template puts before the caption; what it puts behind counts
        behind = len(tokenizer("<|im_end|>\n<|im_start|>assistant\n").input_ids)
        counts = [("tokenizer", length(caption) - length(" ") + 1 + behind, self.options.max_tokens)]
        if glyphs := extract_glyph_texts(caption):
            counts.append(("tokenizer_2", len(tokenizers["tokenizer_2"](glyphs).input_ids), GLYPHS))
        return counts

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [max_tokens, D] of Qwen with mask, embeds_2: [256, E] of ByT5 with mask_2, per caption."""
        texts, device = [p.text for p in prompts], parts["text_encoder"].device
        embeds, mask = HunyuanVideo15Pipeline._get_mllm_prompt_embeds(
            parts["text_encoder"], parts["tokenizer"], texts, device, tokenizer_max_length=self.options.max_tokens
        )
        embeds_2, mask_2 = HunyuanVideo15Pipeline._get_byt5_prompt_embeds(
            parts["tokenizer_2"], parts["text_encoder_2"], texts, device, tokenizer_max_length=GLYPHS
        )
        values = (embeds, mask.to(embeds), embeds_2.to(embeds), mask_2.to(embeds))
        return [
            dict(zip(("embeds", "mask", "embeds_2", "mask_2"), one, strict=True)) for one in zip(*values, strict=True)
        ]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens, "task": self.task}

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """[B, C, f, h, w]: the posterior's mean, scaled."""
        assert media.pixels is not None
        pixels = media.pixels if media.pixels.ndim == 5 else media.pixels[:, :, None]
        vae = parts["vae"]
        # one by one: the attention mask of the pinned autoencoder has no axis for heads and fails on more
        z = [vae.encode(one).latent_dist.mode() for one in pixels.to(vae.dtype).split(1)]
        return torch.cat(z) * vae.config.scaling_factor

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """image_to_video. first: [C, 1, h, w], the latents of the first frame alone. image: [N, D] of SigLIP."""
        if self.task != "image_to_video":
            return super().media_cond(parts, media)
        first = first_frames(media, self.name)
        images = HunyuanVideo15ImageToVideoPipeline._get_image_embeds(
            parts["image_encoder"], parts["feature_extractor"], pictures(first), parts["image_encoder"].device
        )
        latents = self.encode_media(parts, Media(first))
        return [{"first": z, "image": i} for z, i in zip(latents, images, strict=True)]

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """Of the scheduler's configuration; the pipeline does not change it with the size."""
        return float(scheduler.get("shift", 1.0))

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data."""
        config: Any = getattr(denoiser, "module", denoiser).config  # a distributed wrapper hides it
        given, mask = torch.zeros_like(x), torch.zeros_like(x[:, :1])
        if "first" in cond:
            given[:, :, :1] = cond["first"]
            mask[:, :, 0] = 1
            image = cond["image"]
        else:
            image = cond["embeds"].new_zeros(len(x), NO_PICTURE, config.image_embed_dim)
        return denoiser(
            hidden_states=torch.cat([x, given, mask], dim=1),
            image_embeds=image,
            timestep=t * 1000,
            encoder_hidden_states=cond["embeds"],
            encoder_attention_mask=cond["mask"],
            encoder_hidden_states_2=cond["embeds_2"],
            encoder_attention_mask_2=cond["mask_2"],
            attention_kwargs=None,
            return_dict=False,
        )[0]

    def sized(self, request: Request) -> dict[str, Any]:
        """See `Family.sized`. Where there is a picture, its shape and the model's target size give the clip's size."""
        sized = super().sized(request)
        return {k: v for k, v in sized.items() if self.task == "generate" or k not in ("width", "height")}

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`; the strength of guidance is a setting of the pipeline's guider, not of the call."""
        guided = request.negative is not None and request.guidance > 1.0
        parts["guider"].guidance_scale = request.guidance if guided else 1.0
        said: dict[str, Any] = {"image": request.references[0]} if self.task == "image_to_video" else {}
        for prefix, cond in (("", request.cond), ("negative_", request.negative if guided else None)):
            if cond is not None:
                said[f"{prefix}prompt_embeds"] = cond["embeds"][None]
                said[f"{prefix}prompt_embeds_mask"] = cond["mask"][None]
                said[f"{prefix}prompt_embeds_2"] = cond["embeds_2"][None]
                said[f"{prefix}prompt_embeds_mask_2"] = cond["mask_2"][None]
        return said
