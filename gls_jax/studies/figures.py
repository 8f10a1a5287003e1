"""Figures of studies and experiments: the only module of the package that imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from gls_jax import extras

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError:
    extras.require("figures")
    raise

from gls_jax.runs.files import write_whole
from gls_jax.studies.acceptance_study import Row

__all__ = ["acceptance", "drafter_training", "save_figure"]


def acceptance(path: Path, rows: Sequence[Row], title: str) -> None:
    """Acceptance against K: exact lines, simulated points with two standard errors, bound, optimum.

    Args:
        path: `.png` file, replaced whole.
        rows: the rows of one study.
        title: a description of the pairs.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    # Colours and the legend follow the order of the study's schemes.
    curves: dict[str, list[Row]] = {row.scheme: [] for row in rows}
    for row in sorted(rows, key=lambda row: row.num_drafts):
        curves[row.scheme].append(row)
    any_curve = curves[rows[0].scheme]
    num_drafts = [row.num_drafts for row in any_curve]
    optimum = _column(any_curve, "optimum_iid")
    axes.plot(num_drafts, optimum, "k:", label="optimum, i.i.d. drafts")
    for number, (name, curve) in enumerate(curves.items()):
        color = f"C{number}"
        exact, simulated = _column(curve, "exact"), _column(curve, "simulated")
        errors = _column(curve, "standard_error")
        has_exact = np.isfinite(exact).any()
        axes.plot(num_drafts, exact, color, label=f"{name}, exact" if has_exact else None)
        label = None if has_exact else f"{name}, simulated"
        axes.errorbar(
            num_drafts, simulated, 2 * errors, fmt=".", color=color, capsize=2, label=label
        )
    # The bound of the first scheme that has one.
    bounds = [_column(curve, "bound") for curve in curves.values() if curve[0].bound is not None]
    for bound in bounds[:1]:
        axes.plot(num_drafts, bound, "k--", linewidth=1, label="list matching bound")
    axes.set(xlabel="number of drafts K", ylabel="P(target token is in the list)", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(title="points: simulated, ±2 s.e.", fontsize="small")

    save_figure(path, figure, dpi=120)


def drafter_training(path: Path, report: Mapping[str, Any]) -> None:
    """Held-out acceptance against the steps of training, a line for each draft of a chain.

    Args:
        path: `.png` file, replaced whole.
        report: of :func:`gls_jax.models.drafter.make_drafter`.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    rows = report["validations"]
    steps = [row["step"] for row in rows]
    for depth in range(len(rows[0]["acceptance"])):
        acceptances = [row["acceptance"][depth] for row in rows]
        axes.plot(steps, acceptances, f"C{depth}.-", label=f"draft {depth + 1} of a chain")
    axes.set(
        xlabel="steps of training",
        ylabel="acceptance of one draft, held out",
        title=f"drafter of {report['target']}, {report['tokens']:,} tokens",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(path, figure, dpi=120)


def save_figure(path: Path, figure: Figure, *, dpi: int) -> None:
    """Write a figure as a `.png` file, replaced whole.

    Args:
        path: the file.
        figure: equal figures are written as equal files.
        dpi: pixels per inch.
    """

    def save(file: IO[bytes]) -> None:
        # matplotlib would add its version to the file.
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})

    write_whole(path, save)


def _column(rows: Sequence[Row], field: str) -> np.ndarray:
    """One field of all rows. None becomes NaN, which leaves a gap in a curve."""
    return np.array([getattr(row, field) for row in rows], float)
