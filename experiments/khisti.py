"""Khisti et al. 2025 (arXiv 2410.18234): mean acceptance of the optimum and of schemes that know
the draft law.

The paper's table is for an OPT pair on XSum, draft temperature 1.2, K = 2, 4, 8. Here the same
temperatures on the next-token laws of SmolLM2, drafted by itself without layers 12-17, both laws
cut to their top 5, 10 and 50 tokens; exact values, no simulation. Models and text differ: only the
order of the schemes and their distances can be compared. Importance weights are computed by a
program over the first 5 ranks, and over 15, the most the paper speaks of.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, NamedTuple

from matplotlib.figure import Figure

from experiments import shared
from gls_jax import checks, schemes
from gls_jax.schemes import weighted_importance

PAPER = {  # XSum, OPT pair, K = 2, 4, 8
    "optimal": (0.5009, 0.5226, 0.5419),
    "weighted_importance": (0.4933, 0.5145, 0.5333),
    "spectr": (0.4889, 0.5083, 0.5263),
    "specinfer": (0.4875, 0.5058, 0.5227),
}
PAPER_LAWS, PAPER_DRAFTS = "paper", (2, 4, 8)
SCHEMES = {name: schemes.get(name) for name in (*PAPER, "gls", "poisson", "gumbel_topk")}
SCHEMES["weighted_importance_15"] = weighted_importance.truncated_at(15)


class Row(NamedTuple):
    """A mean over positions, or a number of the paper."""

    laws: str
    scheme: str
    num_drafts: int
    acceptance: float
    num_positions: int | None


@dataclasses.dataclass(frozen=True)
class Khisti:
    """Khisti et al.: exact acceptance of optimum, weighted importance, SpecTr, SpecInfer on
    next-token laws.
    """

    FULL: ClassVar[dict] = {"num_positions": 512}

    drop: tuple[int, int] = (12, 17)
    """First and last of the layers that the drafter leaves out."""
    num_drafts: tuple[int, ...] = PAPER_DRAFTS
    """List lengths K."""
    top_k: tuple[int, ...] = (5, 10, 50)
    """Tokens kept of each law."""
    temperature: float = 1.0
    """Of the target."""
    draft_temperature: float = 1.2
    """Of the drafter."""
    num_prompts: int = 8
    """Texts, at most eight."""
    num_positions: int = 32
    """First positions of each text."""
    out: Path = Path("results/khisti")
    """Folder for khisti.csv and khisti.png."""
    full: bool = False
    """Every position of the texts."""

    def run(self, report: shared.Report) -> list:
        counts = checks.counts(self.num_drafts, "num_drafts")
        tops = checks.counts(self.top_k, "top_k")
        rows = []
        for at, top_k in enumerate(tops):
            laws = shared.next_token_laws(
                self.drop,
                num_prompts=self.num_prompts,
                num_positions=self.num_positions,
                top_k=top_k,
                temperature=self.temperature,
                draft_temperature=self.draft_temperature,
            )
            for done, (name, scheme) in enumerate(SCHEMES.items(), at * len(SCHEMES)):
                report("top-k and schemes", done, len(SCHEMES) * len(tops))
                curve = shared.exact(scheme, *laws, counts).mean(0)
                size = laws.log_q.shape[0]
                rows += [
                    Row(f"top {top_k}", name, k, float(x), size)
                    for k, x in zip(counts, curve, strict=True)
                ]
        for name, curve in PAPER.items():
            rows += [
                Row(PAPER_LAWS, name, k, x, None) for k, x in zip(PAPER_DRAFTS, curve, strict=True)
            ]
        shared.write_csv(self.out / "khisti.csv", rows)
        title = f"SmolLM2 at temperature {self.temperature:g}, drafter without layers {self.drop[0]}-{self.drop[1]} at "
        title += f"{self.draft_temperature:g}, {rows[0].num_positions} positions"
        shared.save(self.out / "khisti.png", _figure(rows, title))
        return [_table(rows, f"exact mean acceptance; {title}")]


def _table(rows: list[Row], title: str):
    counts = sorted({row.num_drafts for row in rows})
    values = {(row.laws, row.scheme, row.num_drafts): row.acceptance for row in rows}
    lines = []
    for laws, name in dict.fromkeys((row.laws, row.scheme) for row in rows):
        curve = [values.get((laws, name, k)) for k in counts]
        gaps = [
            None if x is None else x - values[laws, "optimal", k]
            for x, k in zip(curve, counts, strict=True)
        ]
        lines.append((laws, name, *("" if x is None else x for x in (*curve, *gaps))))
    header = ("laws", "scheme", *(f"K={k}" for k in counts), *(f"gap {k}" for k in counts))
    return shared.table(title, header, lines, "gap: to the optimum; paper: OPT pair on XSum")


def _figure(rows: list[Row], title: str) -> Figure:
    names = list(dict.fromkeys(row.laws for row in rows))
    figure = Figure(figsize=(3 * len(names), 4.4), layout="constrained")
    for axes, laws in zip(figure.subplots(1, len(names)), names, strict=True):
        for colour, scheme in enumerate(SCHEMES):
            curve = sorted(
                (row.num_drafts, row.acceptance)
                for row in rows
                if (row.laws, row.scheme) == (laws, scheme)
            )
            places, style = range(len(curve)), "k:o" if scheme == "optimal" else f"C{colour - 1}-o"
            axes.plot(places, [x for _, x in curve], style, markersize=3, label=scheme)
            if scheme == "optimal":
                axes.set_xticks(places, [str(k) for k, _ in curve])
        axes.set(
            xlabel="number of drafts K",
            title="paper: OPT pair, XSum" if laws == PAPER_LAWS else laws,
        )
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean acceptance")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize="small",
    )
    figure.suptitle(title, fontsize="medium")
    return figure
