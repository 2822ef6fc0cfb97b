"""The plan of a recipe as text for a terminal."""

from __future__ import annotations

from typing import Any

MARKS = {"error": "STOP", "warning": "look", "note": "note"}


def plan(report: dict[str, Any]) -> str:
    """What `prepare.report` found, for people."""
    lines = [f"{MARKS[p['level']]}  {p['text']}" for p in report["problems"]]
    if told := report["plan"]:
        lines += _plan(told)
        lines.append(f"Device: {report['device']['name']}; {report['device']['reason']}")
    lines.append("Ready to run." if report["ok"] else "Not ready: put right what says STOP.")
    return "\n".join(lines)


def _plan(told: dict[str, Any]) -> list[str]:
    unused = f", {told['unused']} unused" if told["unused"] else ""
    lines = [f"{told['items']} items in {len(told['buckets'])} bucket(s){unused}:"]
    for b in told["buckets"]:
        fill = f", {b['repeats_to_fill']} repeats would fill a step" if b["repeats_to_fill"] else ""
        steps = f"{b['steps']} steps" if b["steps"] else "held for validation"
        lines.append(f"  data.{b['dataset']}  {_size(b)}: {b['items']} items, {steps}{fill}")
    if len(told["datasets"]) > 1:
        for number, d in enumerate(told["datasets"]):
            lines.append(f"  data.{number}  {d['role']}: {d['share']:.1%} of what is trained ({d['path']})")
    for use in told["uses"]:
        lines.append(f"  {_use(use)}")
    if not told["uses_listed"]:
        lines.append("  (every item's bucket and crop: add --items)")
    lines.append(f"{told['steps_per_epoch']} steps are one epoch; the run makes {told['epochs']} of them")
    if told["cache"]["latents"]:
        lines.append(f"The cache will take {told['cache']['latents'] / 1e6:.1f} MB for latents")
    return lines


def _size(b: dict[str, Any]) -> str:
    parts = [f"{b['width']}x{b['height']}"] if b["width"] else []
    parts += [f"{b['frames']} frames"] if "frames" in b else []
    parts += [f"{b['seconds']:g} s"] if "seconds" in b else []
    return ", ".join(parts)


def _use(use: dict[str, Any]) -> str:
    if "unused" in use:
        return f"{use['name']}: unused at {use['resolution']}, {use['unused']}"
    cut = use["crop"]
    where = f"from {use['start']:g} s, " if "start" in use else ""
    again = f", {use['repeats']} times an epoch" if "repeats" in use else ""
    if not use["bucket"][0]:
        return f"{use['name']}: {where.rstrip(', ')}{again}"
    size, scaled = "x".join(map(str, use["bucket"])), "x".join(map(str, use["scaled"]))
    crop = f"crop {cut[0]},{cut[1]}-{cut[2]},{cut[3]}"
    return f"{use['name']}: {size}, {where}scaled x{use['scale']:g} to {scaled}, {crop}{again}"
