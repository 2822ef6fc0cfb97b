"""Reports of the toolbox as text for a terminal."""

from __future__ import annotations

from typing import Any


def inspected(r: dict[str, Any]) -> str:
    """What `inspect.inspect` found."""
    lines = [
        f"{r['file']}: {r['bytes'] / 1e6:.1f} MB, {r['parameters'] / 1e6:.2f} M parameters in {_listed(r['dtypes'])}",
        f"Family   {', '.join(r['families']) or 'unknown'}, written for {r['dialect']}",
        f"Layers   {r['layers']}: {_listed(r['kinds'])}",
        f"Parts    {_listed(r['parts'])}",
        f"Ranks    {_listed(r['ranks']) or 'none'}; alphas {_listed(r['alphas'])}; scales {_listed(r['scales'])}",
        f"Change   norm {r['norm']:.4g} in all",
    ]
    most = max((b["norm"] for b in r["blocks"]), default=0.0) or 1.0
    wide = max((len(b["block"]) for b in r["blocks"]), default=0)
    for b in r["blocks"]:
        bar = "#" * round(30 * b["norm"] / most)
        lines.append(f"  {b['block']:<{wide}}  {b['norm']:10.4g}  {bar}")
    s = r["spectrum"]
    if s["layers"]:
        shares = ", ".join(f"{rank}: {share:.1%}" for rank, share in s["share"].items())
        e = s["effective_rank"]
        lines.append(f"Energy by rank  {shares}")
        lines.append(f"Effective rank  {e['mean']:.1f} on average ({e['lowest']:.1f} to {e['highest']:.1f})")
    lines.append(f"Metadata {', '.join(r['metadata']['keys']) or 'none'}")
    lines += [f"look     {w}" for w in r["warnings"]]
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts)) or "unnamed"
    return ", ".join(f"{count} x {name or 'unnamed'}" for name, count in counts.items())


def written(r: dict[str, Any]) -> str:
    """What `convert`, `merge`, `resize` or `extract` wrote."""
    made = r["made"]
    lines = [
        f"{r['out']}: {len(made['layers'])} layers for {r['dialect']} in {r['precision']} "
        "(opened again and compared: equal)"
    ]
    if made["ranks"]:
        low, high = made["ranks"]
        lines.append(f"Rank     {low}" if low == high else f"Rank     {low} to {high}")
    lines.append(f"Error    {made['error']:.2%} of the change in all" if made["error"] >= 1e-4 else
                 f"Error    {made['error']:.1e} of the change in all")  # fmt: skip
    if made["worst"] and made["worst"]["error"] >= 1e-4:
        lines.append(f"Worst    {made['worst']['layer']}: {made['worst']['error']:.2%}")
    return "\n".join([*lines, *(f"look     {w}" for w in r.get("warnings", []))])


def baked(r: dict[str, Any]) -> str:
    """What `bake` wrote."""
    lines = [f"{r['out']}: the model with {', '.join(f'{a} at {s:g}' for a, s in r['adapters'])}"]
    for part, b in r["parts"].items():
        lines.append(
            f"  {part}: {b['tensors']} tensors changed, norm {b['norm']:.4g}, of which storing them rounded "
            f"{b['rounding']:.2%} away"
        )
    lines.append("Each adapter's change counts from the model's own weights; their order does not matter.")
    return "\n".join([*lines, *(f"look     {w}" for w in r.get("warnings", []))])
