"""Figures of the command line and the experiments. The only module here that imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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

__all__ = ["acceptance"]


def acceptance(path: Path, rows: Sequence[Row], title: str) -> None:
    """Acceptance against K: exact lines, simulated points with two standard errors, bound and
    optimum.

    Args:
        path: `.png` file, replaced whole.
        rows: of one study.
        title: what the pairs are.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row.scheme for row in rows))
    curves = {
        name: sorted((row for row in rows if row.scheme == name), key=lambda row: row.num_drafts)
        for name in names
    }
    first = curves[names[0]]
    ks = [row.num_drafts for row in first]
    axes.plot(ks, [row.optimum_iid for row in first], "k:", label="optimum, i.i.d. drafts")
    for colour, (name, curve) in enumerate(curves.items()):
        shade = f"C{colour}"
        columns = [(row.exact, row.simulated, row.standard_error) for row in curve]
        exact, simulated, errors = np.array(
            columns, float
        ).T  # None, where a value is not to be had, leaves a gap
        axes.plot(ks, exact, shade, label=f"{name}, exact" if np.isfinite(exact).any() else None)
        label = None if np.isfinite(exact).any() else f"{name}, simulated"
        axes.errorbar(ks, simulated, 2 * errors, fmt=".", color=shade, capsize=2, label=label)
    bound = next(
        ([row.bound for row in curve] for curve in curves.values() if curve[0].bound is not None),
        None,
    )
    if bound is not None:
        axes.plot(ks, np.array(bound, float), "k--", linewidth=1, label="list matching bound")
    axes.set(xlabel="number of drafts K", ylabel="P(target token is in the list)", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(title="points: simulated, ±2 s.e.", fontsize="small")
    write_whole(
        path, lambda file: figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    )
