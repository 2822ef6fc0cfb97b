"""HiDream-I1: two-stream, then one-stream blocks with routed experts, told the text by CLIP, T5 and Llama 3.1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.models.transformers.transformer_hidream_image import MoEGate
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..native import Names
from ..objective import Objective
from ..recipe import LogitNormal, setting
from ..source import Source, contents
from ..types import Cond, Parts, Prompt
from . import _flow
from ._latents import halvings

ATTENTION = r".*\.attn1\.to_(q|k|v|out)(_t)?"
FEED_FORWARD = r".*\.(ff_t|ff_i|ff_i\.shared_experts)\.w[123]"
EXPERTS = r".*\.ff_i\.experts\.\d+\.w[123]"
MODULATION = r".*\.adaLN_modulation\.1"
# Here the text comes after the picture in every table, also where it has a stream of its own.
TABLES = (Aligned("hidden_states_masks", text="after"), Aligned("image_rotary_emb", text="after"))
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


# The original has diffusers' names.
NAMES = Names(architecture="hidream-i1", version="hidream_i1")


class HiDreamOptions(Options):
    """Settings of HiDream-I1."""

    llama: str | None = setting(
        None,
        "Folder or Hub id of the Llama 3.1 8B Instruct that reads captions, which HiDream's own repository leaves out; "
        f"empty: the one beside the model, and without one Meta's on the Hub ({LLAMA})",
        "basic",
    )
    max_tokens: int = setting(128, "Length to which captions are padded", ge=1, le=218)
    balance: float = setting(
        0.0,
        "Weight of a loss that keeps the experts of each layer equally busy (it is 1 where they are); 0.01 is usual, "
        "0 is none. Matters most when the whole model is trained",
        "expert",
        ge=0,
    )


@register
class HiDream(Family):
    """Rectified flow, in a network that answers data - noise.

    Routed experts learn only while the network is in training mode: in evaluation the library runs them without
    gradient.
    """

    name = "hidream"
    title = "HiDream-I1"
    pipelines = {"generate": "HiDreamImagePipeline"}
    accepts = ("HiDreamImagePipeline",)
    text_parts = (
        "tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "tokenizer_3", "text_encoder_3",
        "tokenizer_4", "text_encoder_4",
    )  # fmt: skip
    sources = {"full": "HiDream-ai/HiDream-I1-Full"}
    resolution = 1024
    guidance = 5.0
    timesteps = LogitNormal()
    blocks = (
        Blocks("double_stream_blocks", output=0, aligned=TABLES, closed=True),
        Blocks("single_stream_blocks", text="after", aligned=TABLES),
    )
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{EXPERTS}|{MODULATION}",
    }
    names = NAMES
    licence = "MIT; text encoder: Llama 3.1 Community License"
    size = "17B"
    encoders = "CLIP-L, CLIP-G, T5-XXL, Llama-3.1-8B"
    Options = HiDreamOptions

    def accept(self, source: Source) -> None:
        """See `Family.accept`; Dev and Fast are distilled, which their own scheduler tells."""
        super().accept(source)
        if "LCM" in source.config("scheduler").get("_class_name", ""):
            raise UserError(
                f"source {source.name} is distilled to few steps (its scheduler is made for that), like HiDream-I1 Dev "
                "and Fast; train HiDream-I1 Full (source: full) and use the result with either."
            )
        if source.config("transformer").get("force_inference_output"):
            raise UserError(
                f"source {source.name} sets force_inference_output in transformer/config.json, with which the experts "
                "get no gradient; set it to false there."
            )
        read = [source.config(p).get("max_position_embeddings", 77) for p in ("text_encoder", "text_encoder_2")]
        if self.options.max_tokens > min(read):
            raise UserError(
                f"options.max_tokens is {self.options.max_tokens}, but the CLIP encoders of source {source.name} read "
                f"at most {min(read)} tokens; lower it to {min(read)}."
            )

    def load(self, source: Source, parts: Sequence[str], dtype: torch.dtype) -> Parts:
        """See `Family.load`; the Llama may come from elsewhere. It tells its attentions to the pipeline, which only
        the plain implementation does."""
        fourth = [p for p in ("tokenizer_4", "text_encoder_4") if p in parts]
        elsewhere = [p for p in fourth if self.options.llama or not source.has(p)]
        loaded = super().load(source, [p for p in parts if p not in elsewhere], dtype)
        loaded.components |= {p: self._llama(p, dtype) for p in elsewhere}
        if (encoder := loaded.components.get("text_encoder_4")) is not None:
            encoder.set_attn_implementation("eager")
        return loaded

    def _llama(self, part: str, dtype: torch.dtype) -> Any:
        name = self.options.llama or LLAMA
        try:
            if part == "tokenizer_4":
                return transformers.PreTrainedTokenizerFast.from_pretrained(name)
            network = transformers.LlamaForCausalLM.from_pretrained(name, dtype=dtype)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"HiDream's Llama text encoder could not be loaded from {name} ({first}); set options.llama to a "
                f"folder with its config.json, tokenizer and weights, or to a Hub id such as {LLAMA} (accept its "
                "licence there and run `hf auth login` first)."
            ) from error
        return network.requires_grad_(False).eval()

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; the pipeline wants an even number of cells."""
        rate = halvings(source)
        return Geometry(multiple=rate * source.config("transformer").get("patch_size", 2), rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; CLIP's limit is left out, since only its pooled summary is used."""
        read = [(n, tokenizers[n]) for n in ("tokenizer_3", "tokenizer_4") if n in tokenizers]
        limit = self.options.max_tokens
        return [(n, len(tok(caption).input_ids), min(limit, tok.model_max_length)) for n, tok in read]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """t5: [max_tokens, D], llama: [layers, max_tokens, E], pooled: [P] of both CLIPs, per caption."""
        t5, _, llama, _, pooled, _ = self.pipe(parts).encode_prompt(
            [p.text for p in prompts],
            device=parts["text_encoder_4"].device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.max_tokens,
        )
        return [{"t5": t5[i], "llama": llama[:, i], "pooled": pooled[i]} for i in range(len(prompts))]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`; a Llama in a folder is known by its files, not by the folder's name."""
        llama: Any = self.options.llama
        if llama is not None and (folder := Path(llama).expanduser()).is_dir():
            llama = contents(folder, ".")
        return {"llama": llama, "max_tokens": self.options.max_tokens}

    def collate(self, conds: Sequence[Cond]) -> Cond:
        """See `Family.collate`; Llama's layers come before the batch: [layers, B, L, E]."""
        return {k: torch.stack([c[k] for c in conds], dim=1 if k == "llama" else 0) for k in ("t5", "llama", "pooled")}

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """See `Family.shift`. Where it is dynamic, the pipeline takes it for the most tokens (4096), whatever the
        size."""
        return _flow.shift(scheduler, 4096)

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the answer is data - noise, and in training mode [B, C, tokens, patch²]."""
        network = _flow.bare(denoiser)
        patch, (b, c, h, w) = network.config.patch_size, x.shape
        tokens = (h // patch) * (w // patch)
        if h != w and tokens > network.max_seq:
            raise UserError(
                f"media.resolutions: a picture of {w}x{h} latent cells is {tokens} tokens, but HiDream takes at most "
                f"{network.max_seq}; choose a smaller resolution."
            )
        with self._noting(network):
            out = denoiser(
                hidden_states=x,
                timesteps=t * 1000,
                encoder_hidden_states_t5=cond["t5"],
                encoder_hidden_states_llama3=cond["llama"],
                pooled_embeds=cond["pooled"],
                attention_kwargs=None,
                return_dict=False,
            )[0]
        if network.training and not network.config.force_inference_output:
            # other than square pictures are padded to the most tokens behind their own
            out = out[:, :, :tokens].reshape(b, c, h // patch, w // patch, patch, patch)
            out = out.permute(0, 1, 2, 4, 3, 5).reshape(b, c, h, w)
        return -out

    @contextmanager
    def _noting(self, network: Any) -> Iterator[None]:
        """Leave in `network.balance` how evenly this pass uses the experts, if the option asks for it.

        The gates compute that in training and the pinned library drops it. The hooks last for this pass only, so that
        checkpointing, which repeats it in the backward pass, notes nothing twice.
        """
        network.balance = None
        if not self.options.balance:
            yield
            return
        noted: list[Tensor] = []

        def note(gate: Any, _: Any, out: tuple[Tensor, Tensor, Tensor | None]) -> None:
            if out[2] is not None:
                noted.append(out[2] / gate.alpha)

        hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, MoEGate)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        network.balance = torch.stack(noted).mean() if noted else None

    def extra(self, denoiser: nn.Module) -> dict[str, Tensor]:
        """See `Family.extra`: for each layer E sum f_i P_i, f_i the share of tokens that expert i of E was chosen for
        and P_i its mean score; the mean over the layers, times the option."""
        network = _flow.bare(denoiser)
        value, network.balance = getattr(network, "balance", None), None
        return {} if value is None else {"balance": self.options.balance * value}

    def prepare(self, pipe: Any, request: Request) -> None:
        """See `Family.prepare`; the pipeline scales every size to one area, which is made the one asked for."""
        pipe.default_sample_size = math.sqrt(request.width * request.height) / pipe.vae_scale_factor * (1 + 1e-9)

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`."""

        def text(cond: Cond, prefix: str) -> dict[str, Tensor]:
            return {
                f"{prefix}prompt_embeds_t5": cond["t5"][None],
                f"{prefix}prompt_embeds_llama3": cond["llama"][:, None],
                f"{prefix}pooled_prompt_embeds": cond["pooled"][None],
            }

        if request.negative is None:
            return {**text(request.cond, ""), "guidance_scale": 1.0}
        return {**text(request.cond, ""), **text(request.negative, "negative_"), "guidance_scale": request.guidance}
