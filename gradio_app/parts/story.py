"""What a recipe's values mean, in sentences: why they are so, what they cost, what differs from the original."""

from __future__ import annotations

from typing import Any

from tuner.recipe import READ

from ..forms import Field, get, show
from .words import count, duration

COST = {
    "adapter.alpha": "Doubling it acts like a doubled learning rate",
    "adapter.targets": "More layers learn more, with a larger file and slower steps",
    "adapter.dropout": "Guards small data sets against learning by heart; slows learning",
    "adapter.rslora": "Acts more strongly, above all at high ranks",
    "adapter.init": "pissa and olora learn faster at first, and make files of twice the size",
    "adapter.algorithm": "Decides the size of the file, the speed, and which programs can load it",
    "media.fit": "exact makes one bucket, and cuts off more",
    "media.small": "enlarge blurs; leave_out trains on less",
    "media.crop": "random takes another part of each picture, the same in every epoch",
    "media.fps": "Fewer frames a second see more of a motion in as many frames",
    "media.clips": "More clips see more of a long file; the cache grows with them",
    "media.seconds": "Time and memory grow with it",
    "train.lr": "Too high breaks the picture, too low learns nothing; no effect on time or memory",
    "train.schedule": "Falling rates end calmer; only a constant one can be extended later",
    "train.warmup": "Guards the first steps; learns a little less in them",
    "train.clip": "Guards against single odd steps",
    "train.seed": "Another seed, another run of the same quality",
    "train.loss": "huber and smooth_l1 let odd pictures count less",
    "train.snr_gamma": "Learns steadier and faster on models that predict noise",
    "train.timesteps": "More noise: composition; less noise: detail",
    "train.shift": "Higher: more composition, less detail",
    "train.caption_dropout": "Makes guidance work better, and learns captions a little less",
    "train.last_batch": "fill makes every step equally large, and shows some items more often",
    "train.workers": "Faster where decoding is the bottleneck; more main memory",
    "train.threads": "No effect on a GPU's speed",
    "memory.quantise_text": "Less memory while captions are encoded; embeddings change slightly",
    "memory.quantise_skip": "More memory, closer to the full base",
    "memory.attention": "Speed and memory change, results hardly",
    "validate.guidance": "Higher follows the prompt closer, with harder contrasts; samples only",
    "validate.size": "Time and memory of samples grow with it",
    "validate.frames": "Time and memory of samples grow with it",
    "validate.seconds": "Time and memory of samples grow with it",
    "validate.sweep": "Each of them draws every prompt once more",
    "save.every": "Each save takes a moment; a crash loses at most the steps since the last",
    "save.formats": "Each takes a moment at the end, and room on the disk",
    "save.precision": "bf16 and fp16 halve the file",
    "extensions": "Each says in its own settings what it costs",
    "train.steps": "Time grows with it; memory does not",
    "train.batch": "Time per step and memory grow with it",
    "train.accumulate": "Time per step grows with it; memory does not",
    "train.precision": "bf16 and fp16 take half the memory of fp32",
    "train.optimizer": "adamw8bit and adafactor need less memory; lion half of adamw's",
    "media.resolutions": "Time and memory grow with the square of it",
    "media.frames": "Time and memory grow with it",
    "adapter.rank": "The file, and a little memory, grow with it",
    "adapter.dora": "Slower, and more memory",
    "adapter.kind": "full needs many times the memory of the others",
    "adapter.text": "Slower, and the text encoders stay in memory",
    "memory.checkpointing": "Much less memory; a step takes about a third longer",
    "memory.quantise": "int8 halves the base's memory, nf4 and int4 take about a quarter; steps may be slower",
    "memory.compile": "A wait of about a minute, then faster steps",
    "validate.every": "Each validation takes time",
    "validate.steps": "Drawing time grows with it",
    "validate.prompts": "Each prompt is drawn at every validation",
    "save.keep": "Each checkpoint takes room on the disk",
}


def bytes_text(size: float) -> str:
    """'7.1 GB', '310 MB'."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def scale(adapter: dict[str, Any]) -> str:
    """The factor on the adapter's answer, with how it comes about; empty where the kind has none."""
    rank, alpha = size(adapter), adapter.get("alpha")
    scaled = adapter.get("kind") in ("lora", "controlnet") or "alpha" in _read(adapter)
    if not scaled or not isinstance(rank, int) or not isinstance(alpha, int | float | None):
        return ""
    alpha = rank if alpha is None else alpha
    below, shown = (rank**0.5, f"√{rank}") if adapter.get("rslora") else (rank, str(rank))
    return f"{alpha / below:.3g} ({alpha:g} / {shown})"


def size(adapter: dict[str, Any]) -> Any:
    """The rank that acts; nothing where the kind has none, or it is left to the family.

    LyCORIS takes 16 where none is given.
    """
    kind = adapter.get("kind")
    if kind == "lycoris":
        return (adapter.get("rank") or 16) if "rank" in _read(adapter) else None
    if kind == "full" or (kind == "peft" and adapter.get("algorithm") == "ia3"):
        return None
    return None if kind == "controlnet" and adapter.get("form") != "lora" else adapter.get("rank")


def _read(adapter: dict[str, Any]) -> frozenset[str]:
    """The settings that a LyCORIS algorithm acts on; none for other kinds."""
    if adapter.get("kind") != "lycoris":
        return frozenset()
    known = READ.get(str(adapter.get("algorithm")), frozenset())
    return known - ({"rank", "alpha"} if adapter.get("full_matrix") else frozenset())


def seen(train: dict[str, Any], files: float) -> float | None:
    """How often each item is seen; nothing while the numbers are no numbers. files: repeated ones count as several."""
    try:
        return train["steps"] * train["batch"] * train["accumulate"] / files
    except (TypeError, KeyError, ZeroDivisionError):
        return None


def times(number: float | None) -> str:
    """'40 times', 'about once'."""
    if number is None:
        return ""
    return f"{number:.0f} times" if number >= 1.5 else "about once" if number > 0.7 else "not even once"


def length(train: dict[str, Any], files: float, pace: float | None, modality: str = "image") -> str:
    """The line under the dial: how often each item is seen, and how long it takes."""
    number, steps = seen(train, files), train.get("steps")
    each = EACH.get(modality, EACH["image"])
    first = f"{each} is seen {times(number)}" if number is not None else "There is nothing to learn from yet"
    if pace is None or not isinstance(steps, int):
        return f"{first}. How long it takes is not known before a first run of this model here."
    return f"{first}, about {duration(pace * steps)}."


def differences(found: list[Field], raw: dict[str, Any], own: dict[str, Any]) -> list[dict[str, str]]:
    """What was changed from the recipe: the setting, what it said, what is now."""
    rows = []
    for one in found:
        now, was = get(raw, one.key, one.default), get(own, one.key, one.default)
        if one.key != "data" and now != was:
            rows.append({"key": one.key, "label": one.label, "was": _short(one, was), "now": _short(one, now)})
    return rows


def _short(one: Field, value: Any) -> str:
    if one.kind == "list":
        return count(len(value or []), "entry", "entries")
    if one.kind in ("group", "bool"):
        return "on" if show(one, value) else "off"
    text = str(show(one, value)) or ("automatic" if one.empty else "nothing")
    return text if len(text) <= 60 else text[:57] + "..."


def why(raw: dict[str, Any], own: dict[str, Any], family: dict[str, Any], files: float) -> list[str]:
    """One sentence per value that was derived for the user, with its reason.

    own: the recipe as its author wrote it. files: what is trained on; repeated items count as several.
    """
    train, memory = raw["train"], raw.get("memory") or {}
    said = [
        *_steps(train, own["train"]["steps"], files),
        *_adapter(raw.get("adapter") or {}),
        _rate(train, own["train"]),
    ]
    said += _sizes(raw.get("media") or {}, own.get("media") or {}, family)
    if memory.get("checkpointing"):
        said.append("Activations are computed twice, because else the model needs far more memory.")
    method = memory.get("quantise", "none")
    if method == "auto":
        text = "The base is held in 8 bits, or 4 where that does not fit; the adapter keeps full precision."
        said.append(text)
    elif method not in ("none", None):
        said.append(f"The base is held as {method}, so that it takes less memory; the adapter keeps full precision.")
    if reason := PRECISION.get(str(train.get("precision"))):
        said.append(f"Numbers are {train['precision']}: {reason}.")
    said.append(f"Seed {train.get('seed')}: the same seed gives the same run.")
    return said


EACH = {"image": "Each picture", "video": "Each clip", "audio": "Each sound"}
OFTEN, SELDOM = 500, 10
"""Views of each item beyond which it is likely to be learned by heart (as the doctor says), and below which hardly."""
PRECISION = {
    "bf16": "half the memory of fp32 and the same range, with fewer digits",
    "fp16": "half the memory of fp32, with a smaller range than bf16",
    "fp32": "every digit; what a CPU computes fastest",
}


def _steps(train: dict[str, Any], own: int, files: float) -> list[str]:
    steps, number = train.get("steps"), seen(train, files)
    if not isinstance(steps, int):
        return [f"The recipe's own length is {own} steps."]
    advice = []
    if number is not None and number > OFTEN:
        advice = ["That is very often: more pictures, or fewer steps, keep it from learning them by heart."]
    elif number is not None and number < SELDOM:
        advice = ["That is seldom: more steps, or fewer pictures, let it learn them."]
    often = times(number) or "an unknown number of times"
    if steps == own:
        return [f"{own} steps is the length of this recipe; with your data set each item is seen {often}.", *advice]
    more = "longer learns more, and too long copies the pictures" if steps > own else "a first look"
    return [f"{steps} steps instead of the recipe's {own}: {more}. Each item is seen {often}.", *advice]


def _adapter(adapter: dict[str, Any]) -> list[str]:
    kind, rank = adapter.get("kind"), size(adapter)
    if kind == "full":
        return ["All weights of the model are trained: the strongest way, and by far the most memory."]
    said = []
    if kind == "controlnet":
        said.append("A network that follows a control picture is trained beside the model, which stays as it is.")
    if rank and adapter.get("algorithm") in ("diag_oft", "boft"):
        said.append(f"Blocks of {rank}: larger ones turn more together and make a larger file.")
    elif rank:
        said.append(f"Rank {rank}: a higher one learns more detail and makes a larger file.")
    if text := scale(adapter):
        below = "alpha over the square root of the rank" if adapter.get("rslora") else "alpha over rank"
        said.append(f"The adapter acts with a scale of {text}, {below}.")
    return said


def _rate(train: dict[str, Any], own: dict[str, Any]) -> str:
    rate, optimizer, before = train.get("lr"), train.get("optimizer"), own.get("lr")
    if not isinstance(rate, int | float):
        return f"The learning rate is left to {optimizer}: its usual value."
    if rate == before and optimizer == own.get("optimizer"):
        return f"Learning rate {rate:g} with {optimizer}, as the recipe says."
    shown = f"{before:g}" if isinstance(before, int | float) else "the usual value"
    return (
        f"Learning rate {rate:g} with {optimizer} is your choice; the recipe says {shown} with {own.get('optimizer')}."
    )


def _sizes(media: dict[str, Any], own: dict[str, Any], family: dict[str, Any]) -> list[str]:
    """What pictures and clips are brought to, and who says so."""
    given = media.get("resolutions")
    sizes = given or ([family["resolution"]] if family.get("resolution") else [])
    if family.get("modality") == "audio" or not (sizes or media.get("size")):
        return []
    if media.get("fit") == "exact":
        return [f"Everything is cut to {' × '.join(map(str, media.get('size') or []))} pixels: fit is exact."]
    ground = "as the recipe says" if given == own.get("resolutions") else "as you chose"
    ground = ground if given else f"the size that {family['title']} was made for"
    listed = ", ".join(map(str, sizes))
    if media.get("fit") == "edge":
        return [f"The shorter edge is brought to {listed} pixels: {ground}."]
    return [f"Each is brought to the area of a square of {listed} pixels, in its own shape: {ground}."]
