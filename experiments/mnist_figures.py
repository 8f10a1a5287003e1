"""The figure of :mod:`experiments.mnist_tables`: curves, the paper's beside them, and what decoders see."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

COLUMNS = 16
_STYLES = {"gls": "-", "baseline": "--"}


Curve = dict[int, tuple[float, float]]
"""Squared error and standard error by L."""

Curves = dict[tuple[str, int], Curve]
"""One a scheme and K."""


class Pictures(NamedTuple):
    """Left halves `f32[n, h, w, c]`, and lines of right halves under their names."""

    left: np.ndarray
    lines: list[tuple[str, np.ndarray]]


def figure(here: Curves, silence: dict[int, float], paper: Curves, pictures: Pictures) -> Figure:
    """Curves of squared error against bits, here and in the paper, above the pictures."""
    height = 0.8 * len(pictures.lines)
    made = Figure(figsize=(11, 4.2 + height), layout="constrained")
    top, bottom = made.subfigures(2, 1, height_ratios=(4.2, height))
    colours = {count: f"C{at}" for at, count in enumerate(sorted({count for _, count in (*here, *paper)}))}
    titles = ("here: ±2 s.e., pixels in [-1, 1]", "GLS paper, tables 13 and 14")
    panels = top.subplots(1, 2)
    for count, value in silence.items():
        panels[0].axhline(value, color=colours[count], linestyle=":", linewidth=1, label=f"silence, K = {count}")
    for axes, curves, title in zip(panels, (here, paper), titles, strict=True):
        for (scheme, count), curve in curves.items():
            bits, (errors, bars) = [math.log2(bins) for bins in curve], np.array(list(curve.values())).T
            look = {"fmt": f"{_STYLES[scheme]}o", "color": colours[count], "capsize": 2, "markersize": 3}
            axes.errorbar(bits, errors, 2 * bars, label=f"{scheme}, K = {count}", **look)
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
