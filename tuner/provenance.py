"""What is known of a training, in the words that adapter files use for it; kept in the run folder as metadata.json."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from .family import Family
from .prepare import Prepared
from .recipe import Recipe

FILE = "metadata.json"
COUNTED = 10_000
"""Up to this number of items their tags are counted."""


def facts(ready: Prepared) -> dict[str, str]:
    """Everything, private or not (`formats.metadata.PRIVATE`); values as Python's own text, lists as JSON."""
    known: dict[str, Any] = {**_settings(ready.recipe, ready.family), **_data(ready)}
    return {k: v if isinstance(v, str) else str(v) for k, v in known.items()}


def keep(ready: Prepared, folder: Path) -> None:
    """Write what is known into the run folder, so that a later export need not find the data again."""
    text = json.dumps(facts(ready), indent=1, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def known(folder: Path, recipe: Recipe, family: Family) -> dict[str, str]:
    """What was kept of a run; of one without the file, what its recipe tells."""
    try:
        return dict(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {k: str(v) for k, v in _settings(recipe, family).items()}


def _settings(recipe: Recipe, family: Family) -> dict[str, Any]:
    train = recipe.train
    edges = recipe.media.size or ((recipe.media.resolutions or [0])[0],) * 2
    size = f"{edges[0]}x{edges[1]}" if edges[0] else None
    triggers = list(dict.fromkeys(d.trigger for d in recipe.data if d.trigger))
    said: dict[str, Any] = {
        "ss_output_name": recipe.name,
        "ss_sd_model_name": Path(recipe.source).name,
        "ss_learning_rate": train.lr,
        "ss_unet_lr": train.lr,
        "ss_max_train_steps": train.steps,
        "ss_steps": train.steps,
        "ss_lr_scheduler": train.schedule,
        "ss_lr_warmup_steps": train.warmup,
        "ss_optimizer": train.optimizer,
        "ss_mixed_precision": {"fp32": "no"}.get(train.precision, train.precision),
        "ss_seed": train.seed,
        "ss_loss_type": train.loss,
        "ss_min_snr_gamma": train.snr_gamma,
        "ss_gradient_accumulation_steps": train.accumulate,
        "ss_batch_size_per_device": train.batch,
        "ss_caption_dropout_rate": train.caption_dropout,
        "ss_max_grad_norm": train.clip,
        "ss_gradient_checkpointing": recipe.memory.checkpointing,
        "ss_resolution": f"({edges[0]}, {edges[1]})" if edges[0] else None,
        "ss_training_comment": recipe.description,
        "modelspec.title": recipe.name,
        "modelspec.description": recipe.description,
        "modelspec.resolution": size,
    }
    if triggers:
        said["modelspec.trigger_phrase"] = ", ".join(triggers)
    return {k: v for k, v in said.items() if v not in (None, "")}


def _data(ready: Prepared) -> dict[str, Any]:
    recipe, numbers = ready.recipe, ready.index.numbers("dataset")
    roles = [spec.role for spec in recipe.data]
    held = [int((numbers == i).sum()) for i in range(len(roles))]
    folders = {
        Path(spec.path).name: {"n_repeats": spec.repeats, "img_count": count}
        for spec, count in zip(recipe.data, held, strict=True)
        if spec.role == "train"
    }
    per_epoch = max(1, ready.sampler.steps_per_epoch) if len(ready.trained) else 1
    said: dict[str, Any] = {
        "ss_num_train_images": sum(c for c, role in zip(held, roles, strict=True) if role == "train"),
        "ss_num_reg_images": sum(c for c, role in zip(held, roles, strict=True) if role == "regularisation"),
        "ss_num_batches_per_epoch": per_epoch,
        "ss_num_epochs": -(-recipe.train.steps // per_epoch),
        "ss_dataset_dirs": json.dumps(folders, ensure_ascii=False),
        "ss_training_started_at": time.time(),
    }
    predicts = getattr(ready.objective, "predicts", None)
    if not ready.objective.flow and predicts:
        said["modelspec.prediction_type"] = {"epsilon": "epsilon", "velocity": "v"}.get(predicts, predicts)
    if len(ready.index) <= COUNTED:
        said["ss_tag_frequency"] = json.dumps(_tags(ready), ensure_ascii=False)
    return said


def _tags(ready: Prepared) -> dict[str, dict[str, int]]:
    """Folder → tag → how many items have it."""
    counts: dict[str, Counter[str]] = {}
    for item in ready.index.items:
        folder = Path(ready.recipe.data[item.dataset].path).name
        for caption in item.captions[:1]:
            counts.setdefault(folder, Counter()).update(t.strip() for t in caption.split(",") if t.strip())
    return {folder: dict(counter) for folder, counter in counts.items()}
