"""What :mod:`experiments.mnist_tables` found beside what the paper did: Bjontegaard deltas, curves,
pictures.
"""

from __future__ import annotations

import csv
import importlib.util
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import shared

PUBLISHED = Path(__file__).parent / "published" / "mnist.csv"
COLUMNS = 16
_PEAK = 2.0  # of pixels in [-1, 1]
_STYLES = {"gls": "-", "baseline": "--"}


Curve = dict[int, tuple[float, float]]
"""Squared error and standard error by L."""

Curves = dict[tuple[str, int], Curve]
"""One a scheme and K."""


class Pictures(NamedTuple):
    """Left halves `f32[n, h, w, c]`, and lines of right halves under their names."""

    left: np.ndarray
    lines: list[tuple[str, np.ndarray]]


def published() -> Curves:
    """Tables 13 and 14 of the paper, which give no standard errors."""
    curves: Curves = {}
    with PUBLISHED.open() as file:
        for line in csv.DictReader(line for line in file if not line.startswith("#")):
            curve = curves.setdefault((line["scheme"], int(line["num_decoders"])), {})
            curve[int(line["num_bins"])] = (float(line["mse"]), 0.0)
    return curves


def check_packages() -> None:
    """Raise `ModuleNotFoundError` where the package of the deltas is missing."""
    if importlib.util.find_spec("bjontegaard") is None:
        raise ModuleNotFoundError("package 'bjontegaard' is missing: pip install 'gls-jax[test]'")


def deltas(here: Curves):
    """Bjontegaard deltas of `gls` against the baseline, beside those of the paper's numbers."""
    lines = []
    for where, curves in (("here", here), ("paper", published())):
        for scheme, count in curves:
            if scheme == "gls" and ("baseline", count) in curves:
                rate, psnr = bjontegaard_deltas(curves["baseline", count], curves["gls", count])
                lines.append((where, count, f"{rate:.1f} %", f"{psnr:.2f} dB"))
    return shared.table("GLS against the baseline, Bjontegaard", ("", "K", "rate", "PSNR"), lines)


def bjontegaard_deltas(baseline: Curve, gls: Curve) -> tuple[float, float]:
    """Mean differences of rate in per cent and of PSNR in dB, from squared errors by L; NaN where
    there is none.

    Both need two points, the rate's also curves that overlap and errors that fall with L.
    """
    import bjontegaard  # here: it brings in pyplot

    curves = []
    for curve in (baseline, gls):
        bins = sorted(set(curve) - {1})  # no rate, no ratio of rates
        curves += [
            np.log2(bins),
            10 * np.log10(_PEAK**2 / np.array([curve[size][0] for size in bins])),
        ]
    rates, before, _, after = curves
    if len(rates) < 2:
        return math.nan, math.nan
    psnr = bjontegaard.bd_psnr(*curves, method="pchip", min_overlap=0)
    rising = (np.diff(before) > 0).all() and (np.diff(after) > 0).all()
    overlap = min(before[-1], after[-1]) > max(before[0], after[0])
    rate = (
        bjontegaard.bd_rate(*curves, method="pchip", min_overlap=0)
        if rising and overlap
        else math.nan
    )
    return float(rate), float(psnr)


def figure(here: Curves, silence: dict[int, float], pictures: Pictures) -> Figure:
    """Curves of squared error against bits, here and in the paper, above the pictures."""
    paper, height = published(), 0.8 * len(pictures.lines)
    made = Figure(figsize=(11, 4.2 + height), layout="constrained")
    top, bottom = made.subfigures(2, 1, height_ratios=(4.2, height))
    colours = {
        count: f"C{at}" for at, count in enumerate(sorted({count for _, count in (*here, *paper)}))
    }
    titles = ("here: ±2 s.e., pixels in [-1, 1]", "GLS paper, tables 13 and 14")
    panels = top.subplots(1, 2)
    for count, value in silence.items():
        panels[0].axhline(
            value, color=colours[count], linestyle=":", linewidth=1, label=f"silence, K = {count}"
        )
    for axes, curves, title in zip(panels, (here, paper), titles, strict=True):
        for (scheme, count), curve in curves.items():
            bits, (errors, bars) = (
                [math.log2(bins) for bins in curve],
                np.array(list(curve.values())).T,
            )
            look = {
                "fmt": f"{_STYLES[scheme]}o",
                "color": colours[count],
                "capsize": 2,
                "markersize": 3,
            }
            axes.errorbar(bits, errors, 2 * bars, label=f"{scheme}, K = {count}", **look)
        axes.set(xlabel="bits an image", ylabel="squared error of the best decoder", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small", ncols=2)
    _draw(bottom, pictures)
    return made


def _draw(part, pictures: Pictures) -> None:
    part.suptitle(
        "left halves are drawn for the eye: a decoder has a crop of one", fontsize="small"
    )
    panels = part.subplots(len(pictures.lines), 1)
    for axes, (name, right) in zip(panels, pictures.lines, strict=True):
        whole = (np.concatenate([pictures.left, right], axis=2) + 1) / 2
        spaced = np.pad(whole, ((0, 0), (0, 0), (1, 1), (0, 0)), constant_values=0.5)
        axes.imshow(np.concatenate(spaced, axis=1).squeeze(), cmap="gray", vmin=0, vmax=1)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
        axes.set(xticks=[], yticks=[])
