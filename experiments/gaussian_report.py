"""Rows, tables and figures of :mod:`experiments.gaussian_tables`, with the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import output
from experiments.output import column, select

SCHEMES = ("gls", "baseline")
METRICS = ("mean_of_db", "db_of_mean")
# Names of the estimators in `compression`. The plug-in estimate takes the decoded candidate for the
# encoder's.
PLUG_IN = "plug_in"
POSTERIOR_MEAN = "posterior_mean"


class Row(NamedTuple):
    """One code. Its target variance was chosen for a metric, or it is the paper's, or `fixed`."""

    scheme: str
    num_decoders: int
    num_bins: int
    estimator: str
    chosen_for: str
    target_variance: float
    match: float
    match_error: float
    bound: float | None
    mean_of_db: float
    mean_of_db_error: float
    db_of_mean: float
    db_of_mean_error: float
    published: float | None = None


class Control(NamedTuple):
    """What needs no code: distortion at zero rate, and the converse.

    The converse bounds a mean squared error, so it belongs to one metric only.
    """

    num_decoders: int
    num_bins: int
    zero_rate_mean_of_db: float
    zero_rate_db_of_mean: float
    converse_db: float


class Published(NamedTuple):
    """A point of the paper."""

    target_variance: float
    distortion_db: float


@cache
def published() -> dict[tuple[str, int, int], Published]:
    """The paper's points by scheme, K and L."""
    points = {}
    for line in output.read_published("gaussian.csv"):
        code = (line["scheme"], int(line["num_decoders"]), int(line["num_bins"]))
        points[code] = Published(float(line["target_variance"]), float(line["distortion_db"]))
    return points


def table(rows: Sequence[Row]):
    """The plug-in estimates, with the paper's distortion where it has the point."""
    header = (
        "scheme",
        "K",
        "L",
        "chosen for",
        "s_W",
        "match",
        "mean of dB",
        "± s.e.",
        "dB of mean",
        "paper",
    )
    table_lines = []
    for row in select(rows, estimator=PLUG_IN):
        if row.chosen_for != "fixed":
            line = (
                *row[:3],
                row.chosen_for,
                row.target_variance,
                row.match,
                row.mean_of_db,
                row.mean_of_db_error,
                row.db_of_mean,
                "" if row.published is None else f"{row.published:.4f}",
            )
            table_lines.append(line)
    return output.table("Gaussian source, distortion of the best decoder", header, table_lines)


def verdict(rows: Sequence[Row]) -> Iterator[str]:
    """How the match probability compares with its bound, and how many published points are met."""
    # Proposition 4 promises at least the bound; both are estimates on the same symbols.
    margins = [
        (row.match - row.bound) / row.match_error
        for row in rows
        if row.bound is not None and row.scheme == "gls"
    ]
    if margins:
        yield (
            f"matches of GLS less their bound: at least {min(margins):+.1f} standard errors "
            f"in {len(margins)} rows"
        )
    # Differences from the paper.
    differences = [
        (row.mean_of_db - row.published, row) for row in rows if row.published is not None
    ]
    if differences:
        num_met = sum(
            abs(difference) <= 4 * row.mean_of_db_error + 0.1 for difference, row in differences
        )
        worst, row = max(differences, key=lambda pair: abs(pair[0]))
        yield (
            f"{num_met} of {len(differences)} published points within 4 standard errors plus "
            f"0.1 dB; largest difference {worst:+.3f} dB (± {row.mean_of_db_error:.3f}) at "
            f"{row.scheme}, K = {row.num_decoders}, L = {row.num_bins}"
        )


def rate_distortion_figure(rows: Sequence[Row], controls: Sequence[Control]) -> Figure:
    """Distortion against bits: a row of panels for each metric, a column for each K."""
    counts = sorted(set(column(rows, "num_decoders")))
    figure = Figure(figsize=(3.3 * len(counts), 6.5), layout="constrained")
    grid = figure.subplots(2, len(counts), sharex=True, sharey="row", squeeze=False)
    for panel_column, num_decoders in enumerate(counts):
        panel_rows = select(rows, num_decoders=num_decoders)
        panel_controls = select(controls, num_decoders=num_decoders)
        for axes, metric in zip(grid[:, panel_column], METRICS, strict=True):
            _draw_codes(axes, panel_rows, metric)
            _draw_references(axes, panel_rows, panel_controls, metric)
            axes.grid(alpha=0.3)
        grid[0, panel_column].set_title(f"K = {num_decoders}")
        grid[1, panel_column].set_xlabel("bits a symbol")
    grid[0, 0].set_ylabel("mean of dB")
    grid[1, 0].set_ylabel("dB of the mean squared error")
    # The same curves are in all panels of a row.
    for axes in grid[:, 0]:
        axes.legend(fontsize="small")
    figure.suptitle(
        "Distortion of the best decoder; the target variance is chosen for each row's metric"
    )
    return figure


def _bits(rows: Sequence[Row] | Sequence[Control]) -> list[float]:
    return [math.log2(num_bins) for num_bins in column(rows, "num_bins")]


def _draw_codes(axes, rows: Sequence[Row], metric: str) -> None:
    codes = [(scheme, PLUG_IN, scheme) for scheme in SCHEMES]
    codes.append(("gls", POSTERIOR_MEAN, "posterior mean"))
    for index, (scheme, estimator, label) in enumerate(codes):
        curve_rows = select(rows, scheme=scheme, estimator=estimator, chosen_for=metric)
        if curve_rows:
            axes.errorbar(
                _bits(curve_rows),
                column(curve_rows, metric),
                2 * np.array(column(curve_rows, f"{metric}_error")),
                fmt=f"C{index}-o",
                markersize=3,
                label=label,
            )


def _draw_references(axes, rows: Sequence[Row], controls: Sequence[Control], metric: str) -> None:
    bits = _bits(controls)
    axes.plot(bits, column(controls, f"zero_rate_{metric}"), "k:", label="zero rate")
    if metric == "db_of_mean":
        # With one decoder the converse is the rate-distortion function of Wyner and Ziv.
        name = "Wyner-Ziv" if controls[0].num_decoders == 1 else "converse"
        axes.plot(bits, column(controls, "converse_db"), "k--", label=name)
    points = [row for row in rows if row.published is not None]
    if metric == "mean_of_db" and points:
        axes.plot(_bits(points), column(points, "published"), "kx", label="paper")


def match_figure(rows: Sequence[Row]) -> Figure:
    """Match probability against bits at one target variance, and its bound."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    # The same target variance everywhere, so that only K, L and the scheme differ.
    fixed_rows = select(rows, estimator=PLUG_IN, chosen_for="fixed")
    for color_index, num_decoders in enumerate(sorted(set(column(rows, "num_decoders")))):
        color = f"C{color_index}"
        gls_rows = select(fixed_rows, scheme="gls", num_decoders=num_decoders)
        gls_bits = _bits(gls_rows)
        gls_matches = column(gls_rows, "match")
        axes.plot(gls_bits, gls_matches, f"{color}o-", label=f"K = {num_decoders}")
        axes.plot(gls_bits, column(gls_rows, "bound"), f"{color}--", linewidth=1)
        baseline_rows = select(fixed_rows, scheme="baseline", num_decoders=num_decoders)
        axes.plot(_bits(baseline_rows), column(baseline_rows, "match"), f"{color}s:")
    axes.set(
        xlabel="bits a symbol",
        ylabel="P(one decoder has the encoder's candidate)",
        title="target variance .01",
    )
    axes.grid(alpha=0.3)
    axes.legend(title="GLS; dashed: its bound\ndotted: baseline", fontsize="small")
    return figure
