"""Rows, tables and figures of :mod:`experiments.mnist_tables`, with the paper's numbers."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import output
from gls_jax.compression import ImageErrors

# Pictures in a line.
COLUMNS = 16
# Of pixels in [-1, 1], for the PSNR.
_PEAK = 2.0

# Scheme, K and L.
Code = tuple[str, int, int]
# Squared error and standard error by L.
Curve = dict[int, tuple[float, float]]
# A curve for each scheme and K.
Curves = dict[tuple[str, int], Curve]


class Row(NamedTuple):
    """A point of the tables.

    `gain` is the baseline's error less this one's on the same images, noise and crops.
    """

    scheme: str
    num_decoders: int
    num_bins: int
    beta: float
    num_candidates: int
    squared_error: float
    standard_error: float
    some_decoder_matched: float
    gain: float | None = None
    gain_error: float | None = None
    published: float | None = None


class Pictures(NamedTuple):
    """Left halves `f32[n, h, w, c]`, and lines of right halves under their names."""

    left: np.ndarray
    lines: list[tuple[str, np.ndarray]]


def published() -> Curves:
    """Tables 13 and 14 of the paper, which give no standard errors."""
    curves: Curves = {}
    for line in output.read_published("mnist.csv"):
        curve = curves.setdefault((line["scheme"], int(line["num_decoders"])), {})
        curve[int(line["num_bins"])] = (float(line["mse"]), 0.0)
    return curves


def check_packages() -> None:
    """Raise `ModuleNotFoundError` where the package of the deltas is missing."""
    if importlib.util.find_spec("bjontegaard") is None:
        raise ModuleNotFoundError("package 'bjontegaard' is missing: pip install 'gls-jax[test]'")


def rows_of(
    chosen: Mapping[Code, tuple[float, int]], tested: Mapping[Code, ImageErrors]
) -> list[Row]:
    """A row for each code, from its beta and N and its errors on test images."""
    paper = published()
    rows = []
    for code, errors in sorted(tested.items()):
        scheme, num_decoders, num_bins = code
        beta, num_candidates = chosen[code]
        best = errors.best(num_decoders)
        squared_error, standard_error = _mean(best)
        row = Row(
            scheme=scheme,
            num_decoders=num_decoders,
            num_bins=num_bins,
            beta=beta,
            num_candidates=num_candidates,
            squared_error=squared_error,
            standard_error=standard_error,
            some_decoder_matched=float(errors.matched.any(axis=0).mean()),
        )
        # With one decoder the two schemes are the same.
        if scheme == "gls" and num_decoders > 1:
            baseline = tested["baseline", num_decoders, num_bins].best(num_decoders)
            gain, gain_error = _mean(baseline - best)
            row = row._replace(gain=gain, gain_error=gain_error)
        paper_curve = paper.get((scheme, num_decoders), {})
        if num_bins in paper_curve:
            row = row._replace(published=paper_curve[num_bins][0])
        rows.append(row)
    return rows


def curves_of(rows: Sequence[Row]) -> Curves:
    """Squared error and standard error by L, for every scheme and K."""
    curves: Curves = {}
    for row in rows:
        curve = curves.setdefault((row.scheme, row.num_decoders), {})
        curve[row.num_bins] = (row.squared_error, row.standard_error)
    return curves


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean over repeats and images `[R, n]`, and its standard error.

    Images are independent, repeats of one image are not.
    """
    image_means = values.mean(axis=0)
    standard_error = image_means.std(ddof=1) / math.sqrt(image_means.size)
    return float(image_means.mean()), float(standard_error)


def error_table(rows: Sequence[Row], zero_rate: Mapping[int, float]):
    """All rows, and the errors at zero rate by K."""
    header = (
        "scheme",
        "K",
        "L",
        "beta",
        "N",
        "squared error",
        "± s.e.",
        "matched",
        "less than the baseline",
    )
    table_lines = []
    for row in rows:
        line = (
            row.scheme,
            row.num_decoders,
            row.num_bins,
            f"{row.beta:g}",
            row.num_candidates,
            row.squared_error,
            row.standard_error,
            f"{row.some_decoder_matched:.2f}",
            "" if row.gain is None else f"{row.gain:.4f} ± {row.gain_error:.4f}",
        )
        table_lines.append(line)
    note = ", ".join(f"{value:.4f} at K = {count}" for count, value in zero_rate.items())
    title = "squared error of the best decoder"
    return output.table(title, header, table_lines, note=f"zero rate: {note}")


def order_table(tested: Mapping[Code, ImageErrors]):
    """Whether the published order is found: the smallest difference in its standard errors."""
    claims: dict[str, list[tuple[float, str]]] = {}
    for code, errors in tested.items():
        scheme, num_decoders, num_bins = code
        code_text = f"{scheme}, K = {num_decoders}, L = {num_bins}"
        # A code that should do worse, for each claim.
        worse_codes = {
            "gls is better than the baseline": ("baseline", num_decoders, num_bins),
            "more decoders are better": (scheme, num_decoders // 2, num_bins),
            "more bits are better": (scheme, num_decoders, num_bins // 2),
        }
        for claim, worse_code in worse_codes.items():
            # The baseline is not compared with itself.
            if worse_code in tested and worse_code != code:
                worse = tested[worse_code].best(worse_code[1])
                mean, error = _mean(worse - errors.best(num_decoders))
                claims.setdefault(claim, []).append((mean / error, code_text))
    table_lines = []
    for claim, differences in claims.items():
        smallest, name = min(differences)
        table_lines.append((claim, len(differences), f"{smallest:.1f}", name))
    header = ("", "pairs", "smallest difference / s.e.", "there")
    return output.table("the published order", header, table_lines)


def deltas_table(here: Curves):
    """Bjontegaard deltas of `gls` against the baseline, here and from the paper's numbers."""
    table_lines = []
    for source, curves in (("here", here), ("paper", published())):
        for scheme, num_decoders in curves:
            baseline = curves.get(("baseline", num_decoders))
            if scheme == "gls" and baseline is not None:
                rate, psnr = bjontegaard_deltas(baseline, curves["gls", num_decoders])
                table_lines.append((source, num_decoders, f"{rate:.1f} %", f"{psnr:.2f} dB"))
    header = ("", "K", "rate", "PSNR")
    return output.table("GLS against the baseline, Bjontegaard", header, table_lines)


def bjontegaard_deltas(baseline: Curve, gls: Curve) -> tuple[float, float]:
    """Mean difference of rate in per cent and of PSNR in dB, from squared errors by L.

    A difference is NaN where it is not defined: both need two points; that of rate also needs
    curves that overlap, and errors that fall with L.
    """
    import bjontegaard  # not at the top: it brings in pyplot

    rates, psnr = _rate_and_psnr(baseline)
    gls_rates, gls_psnr = _rate_and_psnr(gls)
    if len(rates) < 2:
        return math.nan, math.nan
    curves = (rates, psnr, gls_rates, gls_psnr)
    psnr_delta = bjontegaard.bd_psnr(*curves, method="pchip", min_overlap=0)
    # Rates are compared at equal PSNR, by the inverse of each curve.
    is_rising = (np.diff(psnr) > 0).all() and (np.diff(gls_psnr) > 0).all()
    is_overlapping = min(psnr[-1], gls_psnr[-1]) > max(psnr[0], gls_psnr[0])
    rate_delta = math.nan
    if is_rising and is_overlapping:
        rate_delta = bjontegaard.bd_rate(*curves, method="pchip", min_overlap=0)
    return float(rate_delta), float(psnr_delta)


def _rate_and_psnr(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    # One bin has rate 0, and ratios of rates are compared.
    bins = sorted(set(curve) - {1})
    errors = np.array([curve[size][0] for size in bins])
    return np.log2(bins), 10 * np.log10(_PEAK**2 / errors)


def figure(here: Curves, zero_rate: Mapping[int, float], pictures: Pictures) -> Figure:
    """Curves of squared error against bits, here and in the paper, above the pictures."""
    paper = published()
    height = 0.8 * len(pictures.lines)
    result = Figure(figsize=(11, 4.2 + height), layout="constrained")
    parts: Any = result.subfigures(2, 1, height_ratios=(4.2, height))
    here_axes, paper_axes = parts[0].subplots(1, 2)
    # A colour for each K, the same in both panels.
    counts = sorted({num_decoders for _, num_decoders in (*here, *paper)})
    colors = {num_decoders: f"C{index}" for index, num_decoders in enumerate(counts)}
    for num_decoders, value in zero_rate.items():
        here_axes.axhline(
            value,
            color=colors[num_decoders],
            linestyle=":",
            linewidth=1,
            label=f"zero rate, K = {num_decoders}",
        )
    _draw_curves(here_axes, here, colors, "here: ±2 s.e., pixels in [-1, 1]")
    _draw_curves(paper_axes, paper, colors, "GLS paper, tables 13 and 14")
    _draw_pictures(parts[1], pictures)
    return result


def _draw_curves(axes, curves: Curves, colors: Mapping[int, str], title: str) -> None:
    for (scheme, num_decoders), curve in curves.items():
        errors, standard_errors = np.array(list(curve.values())).T
        axes.errorbar(
            [math.log2(num_bins) for num_bins in curve],
            errors,
            2 * standard_errors,
            label=f"{scheme}, K = {num_decoders}",
            fmt="-o" if scheme == "gls" else "--o",
            color=colors[num_decoders],
            capsize=2,
            markersize=3,
        )
    axes.set(xlabel="bits an image", ylabel="squared error of the best decoder", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", ncols=2)


def _draw_pictures(part, pictures: Pictures) -> None:
    note = "left halves are drawn for the eye: a decoder has a crop of one"
    part.suptitle(note, fontsize="small")
    panels = part.subplots(len(pictures.lines), 1)
    for axes, (name, right) in zip(panels, pictures.lines, strict=True):
        # Whole digits in [0, 1], side by side with a grey line between them.
        digits = (np.concatenate([pictures.left, right], axis=2) + 1) / 2
        spaced = np.pad(digits, ((0, 0), (0, 0), (1, 1), (0, 0)), constant_values=0.5)
        axes.imshow(np.concatenate(spaced, axis=1).squeeze(), cmap="gray", vmin=0, vmax=1)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
        axes.set(xticks=[], yticks=[])
