"""Figures of the command line and the experiments. The only module here that imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from gls_jax.study import Row, write_whole

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the backend)
from matplotlib.ticker import MaxNLocator  # noqa: E402

__all__ = ["acceptance"]


def acceptance(path: Path, rows: Sequence[Row], title: str) -> None:
    """Acceptance against K: exact lines, simulated points with two standard errors, bound and optimum.

    Args:
        path: `.png` file, replaced whole.
        rows: of one study.
        title: what the pairs are.
    """
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    names = list(dict.fromkeys(row.scheme for row in rows))
    curves = {
        name: sorted((row for row in rows if row.scheme == name), key=lambda row: row.num_drafts) for name in names
    }
    first = curves[names[0]]
    ks = [row.num_drafts for row in first]
    axes.plot(ks, [row.optimum_iid for row in first], "k:", label="optimum, i.i.d. drafts")
    for colour, (name, curve) in enumerate(curves.items()):
        shade = f"C{colour}"
        axes.plot(ks, [row.exact for row in curve], shade, label=f"{name}, exact")
        errors = [2 * row.standard_error for row in curve]
        axes.errorbar(ks, [row.simulated for row in curve], errors, fmt=".", color=shade, capsize=2)
    bound = next((curve for curve in curves.values() if all(row.bound is not None for row in curve)), None)
    if bound:
        axes.plot(ks, [row.bound for row in bound], "k--", linewidth=1, label="list matching bound")
    axes.set(xlabel="number of drafts K", ylabel="P(target token is in the list)", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(title="points: simulated, ±2 s.e.", fontsize="small")
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=120, metadata={"Software": None}))
    plt.close(figure)
