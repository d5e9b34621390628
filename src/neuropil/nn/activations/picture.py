"""A picture of all activations: one small square each, z and f(z) from −4 to 4."""

from typing import Any

import torch

from neuropil.errors import optional
from neuropil.nn.activations.modules import functional
from neuropil.nn.activations.table import FILES, Entry, entries

REACH = 4.0


def curves(entry: Entry, points: int = 401) -> list[Any]:
    """The graphs of an entry in its domain and [−4, 4]², float64 (points, 2), NaN outside: one, or K of a [1->K] entry."""
    lo, hi = max(-REACH, entry.domain[0]), min(REACH, entry.domain[1])
    z = torch.linspace(lo, hi, points, dtype=torch.float64)
    y = functional(entry.name)(z)
    return [torch.stack([z, v.where(v.abs() <= REACH, torch.nan)], -1) for v in (y if isinstance(y, tuple) else (y,))]


def gallery(columns: int = 20, limit: int | None = None) -> Any:
    """A matplotlib figure of every entry that is a function of one number, in the survey's order, coloured by file.

    Solid lines are fixed functions, dashed ones have trained parameters, drawn at their initial values. `limit` stops
    after so many. Needs matplotlib (extra ``report``), else `Refused`; about 5 s.
    """
    pyplot, lines = optional("matplotlib.pyplot", "report"), optional("matplotlib.collections", "report").LineCollection
    shown = [e for e in entries().values() if e.kind in ("elementwise", "expand")][:limit]
    rows = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(figsize=(0.95 * columns, 1.12 * rows + 0.4))
    for i, entry in enumerate(shown):
        x, y = (i % columns) * 10.0, -(i // columns) * 11.8
        color = f"C{FILES.index(entry.file)}"
        axes.add_collection(lines([[(x - 4, y), (x + 4, y)], [(x, y - 4), (x, y + 4)]], colors="0.85", linewidths=0.6))
        graphs = [(g + torch.tensor([x, y])).numpy() for g in curves(entry)]
        axes.add_collection(lines(graphs, colors=color, linewidths=1.2, linestyles="--" if entry.adaptive else "-"))
        axes.text(x, y - 4.7, entry.name, ha="center", va="top", fontsize=5.2 if len(entry.name) < 17 else 4, color="0.15")
    for i, file in enumerate(FILES):
        axes.plot([], [], color=f"C{i}", label=file.replace("_", " "))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(FILES), frameon=False, fontsize=8)
    axes.set(xlim=(-6, 10 * columns - 4), ylim=(-11.8 * rows + 4.5, 5.5))
    axes.set_axis_off()
    return figure
