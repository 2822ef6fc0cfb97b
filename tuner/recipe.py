"""What the user wants from a run: typed, versioned YAML with `extends` and dotted overrides. Knows no torch."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .errors import UserError


class Model(BaseModel):
    """Base of every settings model: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


PATHS = frozenset({"path", "mask", "control", "reference", "start"})
"""Settings of data sets and adapters that are paths."""

Level = Literal["basic", "advanced", "expert"]


def setting(default: Any, description: str, level: Level = "advanced", **limits: Any) -> Any:
    """A recipe field: its default, one plain sentence, and the level of the form on which it appears."""
    return Field(default, description=description, json_schema_extra={"level": level}, **limits)


class TextSpec(Model):
    """The adapter's part on the text encoders (CLIP), of the same kind as the denoiser's."""

    lr: float | None = setting(
        None, "Learning rate of the text encoders; empty: as train.lr. A third to a half of it is usual", gt=0
    )
    rank: int | None = setting(None, "Size of their adapter; empty: as the denoiser's", ge=1)
    alpha: float | None = setting(None, "Scale is alpha / rank; empty means alpha = rank", gt=0)
    parts: list[str] | None = setting(
        None, "Which of them, as text_encoder or text_encoder_2; empty: all that the family can train", min_length=1
    )
    targets: list[str] | None = setting(
        None,
        "Which of their layers: name endings such as q_proj, fc1, or text_encoder_2.text_model. ...; empty: all linear "
        "layers of the blocks whose answer is used",
        "expert",
        min_length=1,
    )
    until: float | None = setting(
        None, "Share of the run after which they stand still; empty trains them to the end", gt=0, le=1
    )
    frozen: bool = setting(
        False, "Hold what adapter.start says of them: it acts and is part of the result, but does not learn"
    )


class LoraTextSpec(TextSpec):
    """A LoRA on the text encoders (CLIP) beside the denoiser's."""

    ranks: dict[str, Annotated[int, Field(ge=1)]] = setting(
        {}, "Other ranks for some of their layers, as in adapter.ranks; names begin with text_encoder", "expert"
    )
    alphas: dict[str, Annotated[float, Field(gt=0)]] = setting(
        {}, "Other alphas for some of their layers, named as in ranks", "expert"
    )
    form: Literal["plain", "dora", "bias"] | None = setting(
        None, "plain, or with DoRA, or with biases; empty: as adapter.dora and adapter.bias say", "expert"
    )


class LoraSpec(Model):
    """A LoRA on the denoiser: two small matrices beside each chosen layer (peft)."""

    kind: Literal["lora"] = "lora"
    rank: int = setting(16, "Size of the adapter: higher learns more detail and makes a larger file", "basic", ge=1)
    alpha: float | None = setting(None, "Scale of the adapter is alpha / rank; empty means alpha = rank", gt=0)
    targets: str | list[str] = setting(
        "default", "Which layers get an adapter: a preset name of the family, or a list of layer name endings"
    )
    ranks: dict[str, Annotated[int, Field(ge=1)]] = setting(
        {}, "Other ranks for some layers: endings of their names (regular expressions), the first that fits", "expert"
    )
    alphas: dict[str, Annotated[float, Field(gt=0)]] = setting(
        {}, "Other alphas for some layers, named as in ranks; empty `alpha` means each layer's own rank", "expert"
    )
    dropout: float = setting(0.0, "Share of adapter inputs dropped at random while training", "expert", ge=0, lt=1)
    text: LoraTextSpec | None = setting(None, "Train the text encoders too; empty leaves them as they are")
    dora: bool = setting(
        False, "Train the size of each output apart from its direction (DoRA): closer to full rank, slower"
    )
    rslora: bool = setting(False, "Scale by alpha / sqrt(rank) (rsLoRA), so that high ranks learn as fast", "expert")
    bias: bool = setting(False, "Train a bias too, where every chosen layer has one", "expert")
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = setting(
        "default",
        "First values. default, gaussian, orthogonal: random; pissa: the main singular directions of each weight; "
        "olora: its QR decomposition",
        "expert",
    )
    init_iterations: int = setting(
        0, "pissa: iterations of a fast approximate decomposition, 4 to 16; 0 decomposes exactly", "expert", ge=0, le=64
    )
    start: str | None = setting(
        None,
        "Go on from this adapter: a file, a run folder or a checkpoint. Ranks, alphas and layers are taken from it",
    )

    def of_text(self) -> LoraSpec:
        """The same settings for the text encoders, with `text` written over them."""
        text = self.text or LoraTextSpec()
        return self.model_copy(
            update={
                "rank": text.rank or self.rank, "alpha": text.alpha, "ranks": text.ranks, "alphas": text.alphas,
                "dora": text.form == "dora" if text.form else self.dora,
                "bias": text.form == "bias" if text.form else self.bias, "text": None,
            }
        )  # fmt: skip


class PeftSpec(Model):
    """An adapter of another kind on the denoiser (peft)."""

    kind: Literal["peft"] = "peft"
    algorithm: Literal["ia3", "miss", "hra"] = setting(
        "ia3",
        "ia3: one factor per output of a layer, the smallest adapter there is; miss: one shared block per layer, "
        "cheaper than a LoRA; hra: a chain of reflections, which keeps angles",
        "basic",
    )
    rank: int = setting(16, "Size of the adapter (miss, hra)", "basic", ge=1)
    targets: str | list[str] = setting(
        "default", "Which layers get an adapter: a preset name of the family, or a list of layer name endings"
    )


class FullSpec(Model):
    """All weights of the denoiser."""

    kind: Literal["full"] = "full"


Algorithm = Literal["locon", "loha", "lokr", "dylora", "ia3", "diag_oft", "boft", "glora", "full"]
_ANY = frozenset({"algorithm", "dropout", "module_dropout"})
_SCALED = _ANY | {"rank", "alpha", "conv_rank", "conv_alpha"}
_FACTORS = _SCALED | {"rank_dropout", "scalar", "dora", "dora_on", "tucker"}
_TURNED = _ANY | {"rank", "conv_rank", "rank_dropout", "rescaled", "constraint"}
READ: dict[str, frozenset[str]] = {
    "locon": _FACTORS,
    "loha": _FACTORS,
    "lokr": _FACTORS | {"factor", "full_matrix", "decompose_both", "unbalanced"},
    "dylora": _SCALED | {"block_size"},
    "ia3": _ANY | {"rank_dropout", "on_input"},
    "diag_oft": _TURNED,
    "boft": _TURNED,
    "glora": _SCALED | {"rank_dropout", "scalar"},
    "full": _ANY | {"rank_dropout"},
}
"""The settings that each LyCORIS algorithm acts on."""


class LycorisKnobs(Model):
    """How one LyCORIS algorithm changes a layer; empty settings take the usual value of the algorithm."""

    algorithm: Algorithm = setting(
        "lokr",
        "locon: LoRA, also on convolutions. loha, lokr: two factors make a change of high rank in a small file. "
        "dylora: a LoRA that works cut to a lower rank. ia3: a factor per channel. diag_oft, boft: rotations of the "
        "output. "
        "glora: LoRA of the weight and of what goes in. full: the whole difference",
        "basic",
    )
    rank: int | None = setting(
        None, "Size of the adapter, for diag_oft and boft the size of a block; empty takes 16", "basic", ge=1
    )
    alpha: float | None = setting(
        None,
        "Scale of the adapter is alpha / rank; empty means alpha = rank. A layer of two whole lokr factors has none",
        gt=0,
    )
    conv_rank: int | None = setting(None, "Rank of convolutions larger than 1x1; empty takes rank", ge=1)
    conv_alpha: float | None = setting(
        None, "Alpha of convolutions larger than 1x1; empty means conv_rank, or alpha without one", gt=0
    )
    dropout: float = setting(
        0.0, "Share of the adapter's answer dropped at random while training", "expert", ge=0, lt=1
    )
    rank_dropout: float = setting(
        0.0, "Share of ranks (locon) or of output channels (the others) dropped at random", "expert", ge=0, lt=1
    )
    module_dropout: float = setting(0.0, "How often a whole layer goes without its adapter", "expert", ge=0, lt=1)
    tucker: bool = setting(False, "Convolutions in Tucker form: a small file also for large kernels")
    dora: bool = setting(False, "Split weights into magnitude and direction and train both (DoRA)")
    dora_on: Literal["output", "input"] | None = setting(
        None, "Axis that has a magnitude each; empty takes output, as most programs expect", "expert"
    )
    scalar: bool = setting(False, "Start from random factors times a trained number that begins at 0", "expert")
    factor: int | None = setting(
        None, "lokr: size of the first factor; empty takes the even split, small ones train more weights", ge=2
    )
    full_matrix: bool = setting(False, "lokr: keep the second factor whole instead of low rank")
    decompose_both: bool = setting(False, "lokr: low rank for the first factor too", "expert")
    unbalanced: bool = setting(False, "lokr: give the first factor the larger part of the output", "expert")
    block_size: int | None = setting(
        None,
        "dylora: how many ranks are trained at a time; rank is a multiple of it; empty takes the largest up to 4",
        ge=1,
    )
    on_input: bool = setting(False, "ia3: a factor per input channel instead of per output channel")
    rescaled: bool = setting(False, "diag_oft, boft: train a factor per output channel as well")
    constraint: float | None = setting(
        None, "diag_oft, boft: how far the rotation may go, times the number of output channels; empty sets no limit",
        "expert", gt=0,
    )  # fmt: skip

    def read(self) -> frozenset[str]:
        """The settings that act with these."""
        whole = {"rank", "alpha", "conv_rank", "conv_alpha", "tucker", "decompose_both"}
        return READ[self.algorithm] - (whole if self.algorithm == "lokr" and self.full_matrix else set())

    def filled(self, rank: int = 16, alpha: float | None = None) -> Self:
        """A copy with what is empty written out, where it is read; rank and alpha are what to take for their own."""
        usual: dict[str, Any] = {"rank": self.rank or rank}
        usual["alpha"] = self.alpha or (alpha if self.rank is None else None) or float(usual["rank"])
        usual["conv_rank"] = self.conv_rank or usual["rank"]
        usual["conv_alpha"] = self.conv_alpha or (float(self.conv_rank) if self.conv_rank else usual["alpha"])
        usual["block_size"] = self.block_size or math.gcd(usual["rank"], 4)
        usual["dora_on"] = self.dora_on or ("output" if self.dora else None)
        return self.model_copy(update={k: v for k, v in usual.items() if k in self.read()})


class LycorisTextSpec(TextSpec):
    """A LyCORIS adapter on the text encoders (CLIP) beside the denoiser's."""

    algorithms: dict[str, LycorisKnobs] = setting(
        {}, "Other settings for some of their layers, as in adapter.algorithms; names begin with text_encoder", "expert"
    )


class LycorisSpec(LycorisKnobs):
    """A LyCORIS adapter on the denoiser (lycoris-lora)."""

    kind: Literal["lycoris"] = "lycoris"
    targets: str | list[str] = setting(
        "default", "Which layers get an adapter: a preset name of the family, or a list of layer name endings"
    )
    algorithms: dict[str, LycorisKnobs] = setting(
        {},
        "Other settings for some of those layers: a pattern such as *.ff.* of the layer's full name, and the settings, "
        "each entry complete but for rank and alpha, which it takes from above; the first pattern that fits counts",
        "expert",
    )
    text: LycorisTextSpec | None = setting(None, "Train the text encoders too; empty leaves them as they are")
    start: str | None = setting(
        None,
        "Go on from this adapter: a file, a run folder or a checkpoint. Its algorithms, ranks, alphas and layers are "
        "taken from it",
    )

    def filled(self, rank: int = 16, alpha: float | None = None) -> Self:
        """See `LycorisKnobs.filled`; other algorithms take rank and alpha from here."""
        whole = super().filled(rank, alpha)
        others = {k: v.filled(self.rank or rank, self.alpha or alpha) for k, v in self.algorithms.items()}
        return whole.model_copy(update={"algorithms": others})

    def of_text(self) -> LycorisSpec:
        """The same settings for the text encoders, with `text` written over them; what is empty is written out."""
        text = self.text or LycorisTextSpec()
        alpha = text.alpha or (float(text.rank) if text.rank else self.alpha)
        own = {"rank": text.rank or self.rank, "alpha": alpha, "algorithms": text.algorithms, "text": None}
        own = {k: v for k, v in own.items() if k in ("algorithms", "text") or k in self.read()}
        return self.model_copy(update=own).filled()

    def of(self, module: str) -> LycorisKnobs:
        """The settings of one module, by its full name."""
        return next((v for k, v in self.algorithms.items() if fnmatch.fnmatchcase(module, k)), self)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, int) else value


class ControlSpec(Model):
    """A ControlNet or a control LoRA: the network learns to follow a control picture (edges, depth, pose, ...)."""

    kind: Literal["controlnet"] = "controlnet"
    reads: ClassVar[frozenset[str]] = frozenset({"control"})
    """Settings of a data set that are acted on."""
    form: Literal["branch", "lora"] | None = setting(
        None,
        "branch: a trained copy of a part of the network; lora: a LoRA on a network that takes the control picture "
        "beside the noise. Empty: the family's own",
        "basic",
    )
    start: str | None = setting(
        None, "Go on from this ControlNet or control LoRA: its folder, a run folder or a checkpoint; empty begins anew"
    )
    layers: Annotated[list[int], BeforeValidator(_listed)] | None = setting(
        None, "Form branch, SD3 and FLUX: blocks that are copied, for FLUX two-stream and one-stream, such as [4, 10]"
    )
    rank: int = setting(64, "Form lora: size of the adapter; its input layer is trained at full rank", ge=1)
    alpha: float | None = setting(None, "Form lora: scale is alpha / rank; empty means alpha = rank", gt=0)
    targets: str | list[str] = setting(
        "default", "Form lora: which layers get an adapter beside the input layer; as for a LoRA"
    )
    strength: float = setting(1.0, "How strongly the control acts in samples", ge=0)


def _lora_by_default(value: Any) -> Any:
    return {"kind": "lora", **value} if isinstance(value, dict) else value


AdapterSpec = Annotated[
    LoraSpec | LycorisSpec | FullSpec | PeftSpec | ControlSpec,
    Field(discriminator="kind"),
    BeforeValidator(_lora_by_default),
]


class AssistantSpec(Model):
    """An adapter that is loaded frozen below the one that trains."""

    path: str = Field(description="Adapter file, run folder or checkpoint", json_schema_extra={"level": "advanced"})
    strength: float = setting(1.0, "Its strength while training and in the validation loss")
    sampling: float = setting(0.0, "Its strength in validation samples; 0 shows the result as it will be used")


class ColumnsSpec(Model):
    """Names of a table's columns; empty ones are guessed from the usual names and the guess is shown."""

    media: str | None = setting(None, "Column with the picture, video or sound: a path, a link s3://... or the bytes")
    caption: str | list[str] | None = setting(None, "Column or columns with captions; several are all used")
    mask: str | None = setting(None, "Column with the mask")
    control: str | None = setting(None, "Column with the control picture")
    reference: str | list[str] | None = setting(None, "Column or columns with reference pictures")
    lyrics: str | None = setting(None, "Column with lyrics")
    crop: str | None = setting(None, "Column with a crop box [left, top, right, bottom] in pixels")


class TagsSpec(Model):
    """Captions that are lists of tags."""

    separator: str = setting(",", "What stands between tags", min_length=1)
    shuffle: int = setting(
        0, "Number of random orders of each caption's tags that are cached and drawn from", ge=0, le=64
    )
    keep: int = setting(0, "How many tags stay in front", ge=0)


class DataSet(Model):
    """One folder, archive, table or cloud store of pictures, videos or sound."""

    path: str = Field(
        description="Folder, .zip, table (.csv .jsonl .parquet), webdataset .tar (with {000..099} for several), "
        "s3://bucket/prefix, or a Hugging Face data set (its folder, or hf://owner/name)",
        json_schema_extra={"level": "basic"},
    )
    split: str = setting("train", "Split of a Hugging Face data set")
    columns: ColumnsSpec = setting(ColumnsSpec(), "Names of a table's columns, where they are not the usual ones")
    caption: str | None = setting(None, "Caption of every item that has none of its own", "basic")
    caption_from: Literal["auto", "file", "name", "column", "none"] = setting(
        "auto",
        "Where captions come from: a .txt beside the file, the file's name, a table's column, or only `caption`; "
        "auto takes the column or the .txt",
    )
    trigger: str | None = setting(
        None, "Word put before every caption that lacks it; [trigger] inside a caption is replaced by it", "basic"
    )
    prefix: str = setting("", "Text put before every caption")
    suffix: str = setting("", "Text put behind every caption")
    tags: TagsSpec | None = setting(None, "Treat captions as lists of tags")
    repeats: int = setting(1, "How often each item is seen in one epoch", ge=1)
    repeats_of: dict[str, Annotated[int, Field(ge=1)]] = setting(
        {}, "Other repeats for some items: their names, with * for any text; the first that fits counts"
    )
    weight: float = setting(
        1.0, "Multiplies the repeats, also by fractions: 0.5 shows every item in every second epoch", gt=0, le=1000
    )
    role: Literal["train", "regularisation", "validation"] = setting(
        "train",
        "regularisation: trained on to keep what the model knows; validation: only used for the validation loss",
    )
    mask: str | None = setting(None, "Folder with a mask picture per item (same name; white counts, black does not)")
    control: str | None = setting(None, "Folder with a control picture per item (same name), for ControlNet training")
    reference: str | list[str] | None = setting(
        None,
        "Folder or folders with the picture that an edit starts from (same name); for image_to_video the first frame "
        "(empty: the clip's own)",
    )
    strength: float = setting(1.0, "Direction and strength of a concept slider for these items", "expert")
    background: str = setting(
        "white", "Colour behind transparent pictures", "expert", pattern=r"^(#[0-9a-fA-F]{6}|[a-z]+)$"
    )
    on_problem: Literal["stop", "skip"] = setting(
        "stop", "What to do about a file that cannot be used: stop before training, or leave it out and say so"
    )


class MediaSpec(Model):
    """Sizes and lengths that items are brought to."""

    resolutions: list[int] | None = setting(
        None,
        "Edge lengths in pixels; each picture is scaled to that area in its own aspect ratio. Empty: the family's own",
        "basic",
        min_length=1,
    )
    fit: Literal["area", "edge", "exact"] = setting(
        "area",
        "What a resolution means: the edge of a square of the same area, the shorter edge, or (exact) use media.size",
    )
    size: tuple[int, int] | None = setting(None, "Width and height of everything (fit: exact)")
    small: Literal["own", "enlarge", "leave_out"] = setting(
        "own",
        "Items smaller than their bucket: train them in a smaller bucket near their own size, enlarge them, "
        "or leave them out",
    )
    crop: Literal["center", "random", "top", "recorded"] = setting(
        "center", "Which part is kept where shapes differ; recorded takes the crop box that came with the item"
    )
    frames: int | None = setting(None, "Frames of a clip; empty takes the family's usual number", ge=1)
    fps: float | None = setting(None, "Frames per second of clips; empty takes the family's own", gt=0)
    clips: int = setting(1, "Clips cut from one file, spread evenly over it; 0 cuts as many as fit end to end", ge=0)
    seconds: float | None = setting(None, "Longest sound or clip in seconds; empty takes the family's own", gt=0)
    sound: bool = setting(True, "Train the sound track of videos too, where the family has sound")


class Timesteps(Model):
    """Fields that every distribution of t has."""

    stratified: bool = setting(False, "Spread the draws of one step evenly over the distribution", "expert")


class LogitNormal(Timesteps):
    """t = sigmoid(mean + std * N(0, 1)) (Esser et al. 2024, SD3)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = setting(0.0, "Above 0 trains more on noisy steps, below 0 on clean ones", "expert")
    std: float = setting(1.0, "Width of the distribution", "expert", gt=0)


class Uniform(Timesteps):
    """t uniform in [low, high]."""

    kind: Literal["uniform"] = "uniform"
    low: float = setting(0.0, "Lowest t (0 = clean)", "expert", ge=0, lt=1)
    high: float = setting(1.0, "Highest t (1 = noise)", "expert", gt=0, le=1)


class Mode(Timesteps):
    """Heavy-tailed mode sampling (Esser et al. 2024, SD3)."""

    kind: Literal["mode"] = "mode"
    scale: float = setting(1.29, "Above 0 favours the middle, below 0 the ends", "expert", ge=-1, le=1.75)


class Beta(Timesteps):
    """t from a beta distribution."""

    kind: Literal["beta"] = "beta"
    alpha: float = setting(2.0, "Higher moves t towards noise", "expert", gt=0)
    beta: float = setting(2.0, "Higher moves t towards data", "expert", gt=0)


TimestepSpec = Annotated[LogitNormal | Uniform | Mode | Beta, Field(discriminator="kind")]
Optimizer = Literal["adamw", "adamw8bit", "prodigy", "adafactor", "lion", "schedulefree"]
Schedule = Literal["constant", "linear", "cosine", "polynomial", "restarts"]


class TrainSpec(Model):
    """How weights are updated."""

    steps: int = setting(1000, "Number of optimiser steps", "basic", ge=1)
    batch: int = setting(1, "Pictures per forward pass", ge=1)
    accumulate: int = setting(1, "Forward passes per optimiser step: a larger batch in the same memory", ge=1)
    lr: float | None = setting(None, "Learning rate; empty takes the optimiser's usual value", gt=0)
    optimizer: Optimizer = setting("adamw", "Update rule")
    optimizer_options: dict[str, Any] = setting({}, "Further arguments of the optimiser, by its own names", "expert")
    schedule: Schedule = setting("constant", "Course of the learning rate over the run")
    cycles: int = setting(1, "Number of restarts (schedule: restarts)", "expert", ge=1)
    warmup: int = setting(0, "Steps over which the learning rate rises from 0", ge=0)
    clip: float = setting(1.0, "Largest gradient norm; 0 turns clipping off", "expert", ge=0)
    seed: int = setting(0, "Same seed, same run", ge=0)
    precision: Literal["fp32", "bf16", "fp16"] = setting("bf16", "Number format of the computation")
    loss: Literal["l2", "huber", "smooth_l1"] = setting("l2", "Error measure; huber forgives outliers", "expert")
    huber_c: float = setting(0.1, "Error above which huber and smooth_l1 turn linear", "expert", gt=0)
    snr_gamma: float | None = setting(
        None, "min-SNR weighting for noise-predicting families; 5 is usual", "expert", gt=0
    )
    timesteps: TimestepSpec | None = setting(
        None, "Which noise levels are trained; empty takes the family's own", "expert"
    )
    shift: float | Literal["auto"] = setting(
        "auto", "Moves t towards noise for large pictures (flow models); auto does as the family's pipeline", "expert"
    )
    threads: int | None = setting(
        None, "CPU threads; empty takes one per core. Small models are fastest with 1 or 2", "expert", ge=1
    )
    caption_dropout: float = setting(0.0, "Share of captions replaced by the empty one", ge=0, le=1)
    last_batch: Literal["smaller", "fill"] = setting(
        "smaller", "The last batch of a bucket: smaller than the others, or filled with items of the bucket drawn again"
    )
    workers: int = setting(0, "Processes that prepare batches; 0 uses a thread of the run", "expert", ge=0, le=64)


Quantisation = Literal[
    "none", "auto", "int8", "int4", "fp8_quanto", "int8_bnb", "nf4", "fp8", "int8_torchao", "fp8_torchao"
]


class MemorySpec(Model):
    """What to trade for memory."""

    quantise: Quantisation = setting(
        "none",
        "Hold the frozen base in fewer bits. auto: int8, or nf4 where that does not fit; int8, int4, fp8_quanto "
        "(optimum-quanto); int8_bnb, nf4 (bitsandbytes); fp8 (diffusers, with checkpointing); int8_torchao, "
        "fp8_torchao",
    )
    quantise_text: Quantisation = setting(
        "none", "The same for the text encoders, which are loaded only to fill the cache"
    )
    quantise_skip: list[str] = setting(
        [], "Layers of the base that keep their precision: a list of layer name endings", "expert"
    )

    checkpointing: bool = setting(False, "Recompute activations in the backward pass: less memory, slower")
    compile: bool = setting(
        False, "Compile the network's blocks with torch.compile: faster steps after a minute's wait", "expert"
    )
    attention: str | None = setting(
        None, "Attention backend of diffusers by its name (native, flash, sage ...); empty: its own choice", "expert"
    )


class SweptAdapter(Model):
    """An adapter from elsewhere that samples are drawn with."""

    path: str = Field(
        description="Run folder, checkpoint folder or adapter file, in any dialect",
        json_schema_extra={"level": "advanced"},
    )
    strength: float = setting(1.0, "Weight of the adapter")


class Sweep(Model):
    """One further way to draw every sample: with other adapters, another strength, or the base alone."""

    label: str = Field(
        description="Name of its samples", pattern=r"^[\w][\w .+-]{0,39}$", json_schema_extra={"level": "advanced"}
    )
    adapters: list[SweptAdapter] = setting([], "Adapters that are put over the model for these samples only")
    trained: float = setting(1.0, "Strength of the adapter that is being trained; 0 leaves it out")


def _sweeps(value: Any) -> Any:
    """A list, or the path of a JSON file with one; paths in the file are relative to it."""
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"the file {value} cannot be read ({error.strerror}); correct its path") from None
    except ValueError as error:
        raise ValueError(f"the file {value} is not valid JSON ({error}); correct it") from None
    if not isinstance(listed, list):
        raise ValueError(f"the file {value} must hold a list of sweeps with a label each")
    return _swept_paths(listed, path.parent)


def _swept_paths(listed: list[Any], base: Path) -> list[Any]:
    """Sweeps whose adapters' paths are absolute."""
    for sweep in listed:
        for one in (sweep.get("adapters") or []) if isinstance(sweep, dict) else []:
            if isinstance(one, dict) and isinstance(one.get("path"), str):
                one["path"] = _placed(one["path"], base)
    return listed


class ValidateSpec(Model):
    """Samples and validation loss during the run, the first at step 0."""

    prompts: list[str] = setting([], "One sample is drawn for each", "basic")
    negative: str = setting("", "What samples should not show, where the family uses guidance")
    every: int = setting(100, "Steps between validations; there is always one at the start and the end", "basic", ge=1)
    steps: int = setting(20, "Sampling steps per picture", ge=1)
    guidance: float | None = setting(None, "Strength of the prompt; empty takes the family's usual value", ge=0)
    seed: int = setting(0, "Seed of the samples", ge=0)
    size: tuple[int, int] | None = setting(None, "Width and height of samples; empty takes the first resolution")
    frames: int | None = setting(None, "Frames of video samples; empty takes those of the training clips", ge=1)
    seconds: float | None = setting(None, "Length of sound samples in seconds; empty takes the training length", gt=0)
    references: list[str] = setting(
        [], "Edit and image-to-video tasks: one picture for each prompt, or one for all; empty takes training items"
    )
    controls: list[str] = setting(
        [], "ControlNet: one control picture for each prompt, or one for all; empty takes those of training items"
    )
    lyrics: list[str] = setting([], "Lyrics for each prompt, where the family sings")
    sweep: Annotated[list[Sweep], BeforeValidator(_sweeps)] = setting(
        [],
        "Further samples of every prompt, with other adapters or strengths: a list, or the path of a JSON file with it",
    )


Format = Literal["diffusers", "comfyui", "kohya", "lycoris"]


class SaveSpec(Model):
    """Checkpoints, and the files that come out in the end."""

    every: int = setting(250, "Steps between checkpoints; there is always one at the end", ge=1)
    keep: int = setting(3, "How many checkpoints are kept; the newest stay", ge=1)
    formats: list[Format] = setting(
        [], "Programs for which the adapter is written; empty: all that exist for the family, each opened and checked"
    )
    precision: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32",
        "Number format of the written adapter. fp32 is exactly what trained, and stays so when merged, resized or "
        "converted; bf16 and fp16 halve the file and round each value by up to 0.4 % and 0.05 %",
    )
    metadata: Literal["full", "share", "minimal"] = setting(
        "full",
        "What the file tells of the training: everything; without names of folders, captions, comments and times; or "
        "only what other programs need to load it",
    )


class ExtensionSpec(BaseModel):
    """A technique by its kind; its settings are checked by the technique itself."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    def settings(self) -> dict[str, Any]:
        """Everything but the kind."""
        return dict(self.__pydantic_extra__ or {})


class Recipe(Model):
    """One run, whole."""

    version: Literal[1] = 1
    name: str = setting("run", "Name of the run and of its files", "basic", pattern=r"^[\w][\w .-]{0,79}$")
    description: str = setting("", "What this recipe is for", "basic")
    family: str = Field(description="Model family", json_schema_extra={"level": "basic"})
    task: str = setting("generate", "What the model is trained to do")
    source: str = Field(
        description="Base model: a name the family knows, a Hub id, or a local folder in Hub layout",
        json_schema_extra={"level": "basic"},
    )
    options: dict[str, Any] = setting({}, "Settings that only this family has", "advanced")
    adapter: AdapterSpec = LoraSpec()
    assistants: list[AssistantSpec] = setting(
        [], "Adapters loaded frozen while this one trains, and not part of the result (de-distillation of turbo models)"
    )
    data: list[DataSet] = Field(description="What to train on", min_length=1, json_schema_extra={"level": "basic"})
    media: MediaSpec = MediaSpec()
    train: TrainSpec = TrainSpec()
    memory: MemorySpec = MemorySpec()
    extensions: list[ExtensionSpec] = setting([], "Techniques, in the order in which they act")
    validation: ValidateSpec | None = Field(None, alias="validate", description="Samples and validation loss")
    save: SaveSpec = SaveSpec()

    model_config = ConfigDict(populate_by_name=False)


def load(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, apply its `extends` and the `key=value` overrides, and check it.

    Paths inside a file are relative to that file; paths in overrides are relative to the current folder.
    Raises `UserError` with one sentence per mistake.
    """
    path = Path(path)
    raw = _read(path)
    if "extends" in raw:
        raw = _extend(raw, path)
    for override in overrides:
        _override(raw, override)
    return parse(raw, str(path))


def parse(raw: dict[str, Any], origin: str = "recipe") -> Recipe:
    """A checked recipe from plain values. Raises `UserError`; `origin` names the file in its sentences."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(explain(error, origin))) from None


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def explain(error: ValidationError, origin: str, prefix: str = "", known: type[BaseModel] = Recipe) -> Iterator[str]:
    """One plain sentence per mistake: the dotted setting, what it was, and the way out."""
    for item in error.errors(include_url=False):
        where = prefix + ".".join(str(p) for p in _without_tags(item["loc"]))
        if item["type"] == "extra_forbidden":
            keys = [prefix + k for k in sorted(_keys(known))]
            if where in keys:
                group = where.rpartition(".")[0]
                yield f"{origin}: {where} is a setting of another {group}.kind; remove it, or change {group}.kind."
                continue
            close = difflib.get_close_matches(where, keys, 1, 0.6)
            hint = f"did you mean {close[0]}?" if close else "remove it, or see the README for the settings there are."
            yield f"{origin}: {where} is not a setting; {hint}"
        elif item["type"] == "missing":
            way = ", or say data.0.path=FOLDER behind the command" if where == "data" else ""
            yield f"{origin}: {where} is missing; add it to the recipe{way}."
        elif item["type"].startswith("union_tag"):
            allowed = (item.get("ctx") or {}).get("expected_tags") or "logit_normal, uniform, mode, beta"
            yield f"{origin}: {where}.kind must be one of {allowed}."
        elif item["type"] == "string_pattern_mismatch":
            rule = "letters, digits, spaces, dots, hyphens and underscores, begin with a letter or digit, and be short"
            yield f"{origin}: {where} is {_short(item['input'])}, but it should have only {rule}."
        else:
            said = item["msg"][0].lower() + item["msg"][1:]
            yield f"{origin}: {where} is {_short(item['input'])}, but {said.replace('input ', 'it ')}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _without_tags(loc: tuple[Any, ...]) -> list[Any]:
    """Drop what pydantic puts into a location for unions: the chosen tag or type name."""
    tags = {"lora", "full", "peft", "lycoris", "controlnet", "logit_normal", "uniform", "mode", "beta"}
    kept: list[Any] = []
    for part in loc:
        text = str(part)
        if kept and (text in tags and str(kept[-1]) in {"adapter", "timesteps"}):
            continue
        if re.match(r"^(str|float|int|list\[.*|literal\[.*)$", text):
            continue
        kept.append(part)
    return kept


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a settings model, through lists and unions (list items as index 0)."""
    for name, info in model.model_fields.items():
        key = prefix + (info.alias or name)
        yield key
        for inner in _models(info.annotation):
            listed = "list[" in str(info.annotation)
            yield from _keys(inner, f"{key}.0." if listed else f"{key}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"The recipe {path} does not exist; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The recipe {path} cannot be read ({error}); check that it is a YAML text file.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"The recipe {path} is not valid YAML{line}; check indentation and colons there.") from None
    if not isinstance(raw, dict):
        raise UserError(f"The recipe {path} must hold settings such as `family: flux1`; see recipes/ for examples.")
    return _absolute(raw, path.parent)


def _absolute(raw: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make the file's own relative paths absolute, so that a recipe can be started from any folder."""
    source = raw.get("source")
    if isinstance(source, str) and source.startswith(("./", "../", "~")):
        raw["source"] = str((base / Path(source).expanduser()).resolve())
    for data in raw.get("data") or []:
        for key in PATHS:
            if isinstance(data, dict) and key in data:
                data[key] = _placed(data[key], base)
    for given in [raw.get("adapter"), *(raw.get("assistants") or [])]:
        for key in ("path", "start"):
            if isinstance(given, dict) and given.get(key) is not None:
                given[key] = _placed(given[key], base)
    _absolute_samples(raw.get("validate"), base)
    return raw


def _absolute_samples(samples: Any, base: Path) -> None:
    """The same for what validation samples are drawn with."""
    for key in ("references", "controls"):
        if isinstance(samples, dict) and key in samples:
            samples[key] = _placed(samples[key], base)
    if isinstance(samples, dict) and "sweep" in samples:
        sweep = samples["sweep"]
        samples["sweep"] = _swept_paths(sweep, base) if isinstance(sweep, list) else _placed(sweep, base)


def _placed(value: Any, base: Path) -> Any:
    """A path, or each of a list, relative to `base`; links (s3://, hf://) and everything else stay as they are."""
    if isinstance(value, list):
        return [_placed(v, base) for v in value]
    if not isinstance(value, str) or re.match(r"^[a-z0-9]+://", value):
        return value
    return str((base / Path(value).expanduser()).resolve())


def _extend(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    base_path = path.parent / str(raw.pop("extends"))
    base = _read(base_path)
    if "extends" in base:
        raise UserError(f"{base_path}: a recipe that others extend may not itself use extends; write its settings out.")
    return _merge(base, raw)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Settings of `over` on top of `base`; lists and changed kinds replace, groups merge."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        same_kind = (
            isinstance(value, dict) and isinstance(old, dict) and value.get("kind", old.get("kind")) == old.get("kind")
        )
        result[key] = _merge(old, value) if same_kind else value
    return result


def _override(raw: dict[str, Any], text: str) -> None:
    """Set one `dotted.key=value`; the value is YAML, so 1e-4, true and [a, b] mean what they say."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UserError(f"{text!r} is not an override; write it as key=value, for example train.steps=50.")
    try:
        parsed = _number(yaml.safe_load(value))
    except yaml.YAMLError:
        parsed = value
    parts = key.split(".")
    target: Any = raw
    for here, following in itertools.pairwise(parts):
        target = _step_into(target, here, [] if following.isdigit() else {}, text)
    if isinstance(target, list):
        _set_item(target, parts[-1], parsed, text)
    else:
        own = key == "source" or parts[0] in ("data", "adapter", "assistants")
        target[parts[-1]] = _local(parts[-1], parsed) if own else parsed


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; people mean the number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _local(key: str, value: Any) -> Any:
    if key in PATHS:
        return _placed(value, Path.cwd())
    if key == "source" and isinstance(value, str):
        path = Path(value).expanduser()
        if value.startswith((".", "~")) or path.exists():
            return str(path.resolve())
    return value


def _step_into(target: Any, part: str, empty: Any, text: str) -> Any:
    if isinstance(target, list):
        if not part.isdigit() or int(part) > len(target):
            raise UserError(f"{text!r}: {part} is not a place in that list, which has {len(target)} entries.")
        if int(part) == len(target):
            target.append(empty)
        return target[int(part)]
    if target.get(part) is None:
        target[part] = empty
    if not isinstance(target[part], dict | list):
        raise UserError(f"{text!r}: {part} is a single value and has no settings inside; check the dotted key.")
    return target[part]


def _set_item(target: list[Any], part: str, value: Any, text: str) -> None:
    if not part.isdigit() or int(part) > len(target):
        raise UserError(f"{text!r}: {part} is not a place in that list, which has {len(target)} entries.")
    if int(part) == len(target):
        target.append(value)
    else:
        target[int(part)] = value
