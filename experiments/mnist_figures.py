"""The figure of :mod:`experiments.mnist_tables`: curves, the paper's beside them, and what decoders see."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

COLUMNS = 16
_STYLES = {"gls": "-", "baseline": "--"}


class Pictures(NamedTuple):
    """Left halves `f32[n, h, w, c]`, and lines of right halves under their names."""

    left: np.ndarray
    lines: list[tuple[str, np.ndarray]]


def figure(rows, silence: dict[int, float], paper_bins, paper: dict, pictures: Pictures) -> Figure:
    """Curves of squared error against bits, here and in the paper, above the pictures."""
    made = Figure(figsize=(11, 4.2 + 0.8 * len(pictures.lines)), layout="constrained")
    top, bottom = made.subfigures(2, 1, height_ratios=(4.2, 0.8 * len(pictures.lines)))
    ours, theirs = top.subplots(1, 2)
    cells = dict.fromkeys(row[:2] for row in rows)
    colours = {count: f"C{at}" for at, count in enumerate(sorted({count for _, count in cells}))}
    for scheme, count in cells:
        points = [row for row in rows if row[:2] == (scheme, count)]
        bits, errors = [math.log2(row.num_bins) for row in points], [row.squared_error for row in points]
        bars = [2 * row.standard_error for row in points]
        name, style = f"{scheme}, K = {count}", _STYLES[scheme]
        ours.errorbar(bits, errors, bars, fmt=f"{style}o", color=colours[count], capsize=2, markersize=3, label=name)
    for count, value in silence.items():
        ours.axhline(value, color=colours[count], linestyle=":", linewidth=1, label=f"hearing nothing, K = {count}")
    for (scheme, count), values in paper.items():
        bits, colour = [math.log2(size) for size in paper_bins], colours.get(count, "k")
        theirs.plot(bits, values, f"{_STYLES[scheme]}o", color=colour, markersize=3, label=f"{scheme}, K = {count}")
    for axes, title in ((ours, "here: ±2 s.e., pixels in [-1, 1]"), (theirs, "GLS paper, tables 13 and 14")):
        axes.set(xlabel="bits an image", ylabel="squared error of the best decoder", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small", ncols=2)
    _draw(bottom, pictures)
    return made


def _draw(part, pictures: Pictures) -> None:
    panels = part.subplots(len(pictures.lines), 1)
    for axes, (name, right) in zip(panels, pictures.lines, strict=True):
        whole = (np.concatenate([pictures.left, right], axis=2) + 1) / 2
        spaced = np.pad(whole, ((0, 0), (0, 0), (1, 1), (0, 0)), constant_values=0.5)
        axes.imshow(np.concatenate(spaced, axis=1).squeeze(), cmap="gray", vmin=0, vmax=1)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
        axes.set(xticks=[], yticks=[])
