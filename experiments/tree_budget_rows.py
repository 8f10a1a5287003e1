"""Rows of the experiment `tree_budget`, their table and their figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import output
from experiments.output import column, distinct, select
from gls_jax.planner.rounds import tokens_per_round

# Okabe and Ito's colours, safe for colour-blind readers. A scheme keeps its colour.
_COLORS = {
    "topk": "#000000",
    "gumbel_topk": "#0072B2",
    "poisson": "#56B4E9",
    "gls": "#009E73",
    "specinfer_wor": "#E69F00",
    "traversal": "#D55E00",
    "optimal": "#CC79A7",
    "block": "#999999",
}
_STYLES = {"best-first": "-o", "margin": "-s", "static": "--^", "chains": ":v", "one chain": ":x"}
# The lines of the figure, of each scheme the better of chains and static trees. All others are in
# the file, the ceilings too, which are far above.
_DRAWN = (
    ("topk", "best-first"),
    ("gumbel_topk", "margin"),
    ("topk", "static"),
    ("gumbel_topk", "static"),
    ("traversal", "static"),
    ("specinfer_wor", "static"),
    ("optimal", "chains"),
    ("poisson", "chains"),
    ("gls", "chains"),
    ("block", "one chain"),
    ("topk", "one chain"),
)


class Point(NamedTuple):
    """What was counted in one setting, or in the best of several.

    Attributes:
        part: `budget`, or `check` for settings that are counted in two ways.
        temperature: of the target.
        scheme: its name.
        tree: "one chain", "chains", "static", "best-first", "margin", or "ceiling" of these two.
        nodes: the budget of verified nodes.
        shape: the drafts in words.
        how: "predicted", "estimated", "replayed" or "decoded".
        num_tokens, num_rounds: of each text, `[D]`.
        is_paired: whether the texts are those of plain generation.
    """

    part: str
    temperature: float
    scheme: str
    tree: str
    nodes: int
    shape: str
    how: str
    num_tokens: np.ndarray
    num_rounds: np.ndarray
    is_paired: bool


class Row(NamedTuple):
    """A point over all texts.

    Attributes:
        tokens_per_call: emitted tokens per call of the target.
        standard_error: of it, over the texts.
        gain_over_best_first: `tokens_per_call` less that of the best-first tree of as many nodes,
            along the same texts; None where there is none.
        error_of_gain: standard error of this difference, over the texts.
        rounds: of all texts, rounded.
    """

    part: str
    temperature: float
    scheme: str
    tree: str
    nodes: int
    shape: str
    how: str
    tokens_per_call: float
    standard_error: float
    gain_over_best_first: float | None
    error_of_gain: float | None
    rounds: int


def rows_of(points: Sequence[Point]) -> list[Row]:
    """The rows of one temperature."""
    baselines = {point.nodes: point for point in points if point.tree == "best-first"}
    rows = []
    for point in points:
        mean, error = tokens_per_round(point.num_tokens, point.num_rounds)
        difference, difference_error = None, None
        baseline = baselines.get(point.nodes)
        if baseline is not None and baseline is not point and point.is_paired:
            difference, difference_error = _difference(point, baseline)
        rows.append(
            Row(
                part=point.part,
                temperature=point.temperature,
                scheme=point.scheme,
                tree=point.tree,
                nodes=point.nodes,
                shape=point.shape,
                how=point.how,
                tokens_per_call=mean,
                standard_error=error,
                gain_over_best_first=difference,
                error_of_gain=difference_error,
                rounds=round(float(point.num_rounds.sum())),
            )
        )
    return rows


def _difference(point: Point, baseline: Point) -> tuple[float, float]:
    """Difference of two ratios along the same texts, and its standard error (delta method)."""
    residuals = []
    means = []
    for one in (point, baseline):
        mean = one.num_tokens.sum() / one.num_rounds.sum()
        residuals.append((one.num_tokens - mean * one.num_rounds) / one.num_rounds.sum())
        means.append(mean)
    num_texts = len(point.num_rounds)
    squares = np.sum((residuals[0] - residuals[1]) ** 2)
    error = np.sqrt(squares * num_texts / (num_texts - 1))
    return float(means[0] - means[1]), float(error)


def table(rows: Sequence[Row], title: str):
    """Tokens per call by nodes, the best of each temperature first."""
    nodes = sorted(distinct(rows, "nodes"))
    lines = []
    for temperature in distinct(rows, "temperature"):
        here = select(rows, part="budget", temperature=temperature)
        curves = [select(here, scheme=name, tree=tree) for name, tree in _curves(here)]
        curves.sort(key=lambda curve: -curve[-1].tokens_per_call)
        for curve in curves:
            by_nodes = {row.nodes: row.tokens_per_call for row in curve}
            first = curve[0]
            values = (by_nodes.get(count) for count in nodes)
            error = max(column(curve, "standard_error"))
            lines.append((f"{temperature:g}", first.scheme, first.tree, *values, error, first.how))
    header = ("T", "scheme", "tree", *map(str, nodes), "± s.e. up to", "")
    return output.table(f"{title}: tokens per call by nodes", header, lines)


def _curves(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.scheme, row.tree) for row in rows))


def figure(rows: Sequence[Row], title: str) -> Figure:
    """A panel for each temperature."""
    rows = select(rows, part="budget")
    temperatures = distinct(rows, "temperature")
    result = Figure(figsize=(10.5, 5.2), layout="constrained")
    all_axes = result.subplots(1, len(temperatures), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axes, temperature in zip(all_axes, temperatures, strict=True):
        handles |= _draw(axes, select(rows, temperature=temperature))
        axes.set(title=f"T = {temperature:g}", xlabel="verified nodes", xscale="log")
        nodes = sorted(distinct(rows, "nodes"))
        axes.set_xticks(nodes, map(str, nodes))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    all_axes[0].set(ylabel="tokens a target call")
    labels = [label for label in map(_label, _DRAWN) if label in handles]
    result.legend([handles[label] for label in labels], labels, loc="outside lower center", ncols=4)
    result.suptitle(title, fontsize="medium")
    return result


def _label(curve: tuple[str, str]) -> str:
    scheme, tree = curve
    return f"{scheme}, {tree}"


def _draw(axes, rows: Sequence[Row]) -> dict[str, Any]:
    """The lines of one panel by their labels."""
    handles = {}
    for number, (scheme, tree) in enumerate(_DRAWN):
        curve = select(rows, scheme=scheme, tree=tree)
        if not curve:
            continue
        # Points of one budget side by side, so that their errors can be told apart.
        shift = 1.012 ** (number - len(_DRAWN) / 2)
        is_dynamic = tree in ("best-first", "margin")
        handles[_label((scheme, tree))] = axes.errorbar(
            [row.nodes * shift for row in curve],
            column(curve, "tokens_per_call"),
            column(curve, "standard_error"),
            fmt=_STYLES[tree],
            color=_COLORS[scheme],
            linewidth=2 if is_dynamic else 1,
            markersize=5,
            elinewidth=0.8,
            capsize=2,
        )
    return handles
