"""Khisti et al. 2025 (arXiv 2410.18234): schemes that know the draft distribution.

The paper's table is for an OPT pair on XSum, draft temperature 1.2, K = 2, 4, 8. Here the mean
acceptance of its schemes, and of the optimum, is computed at the same temperatures on next-token
distributions of SmolLM2, drafted by itself without layers 12-17, both cut to their top 5, 10 and 50
tokens. All values are exact. Models and texts differ, so only the order of the schemes and their
distances can be compared. Importance weights are computed by a program over the first 5 ranks, and
over 15, the most that the paper speaks of.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, NamedTuple

from matplotlib.figure import Figure

from experiments import output, shared
from experiments.output import column, distinct, select
from gls_jax import checks, schemes
from gls_jax.exact import batched
from gls_jax.schemes import weighted_importance
from gls_jax.typing import Report

# Mean acceptance on XSum, OPT pair, at K = 2, 4 and 8.
PAPER = {
    "optimal": (0.5009, 0.5226, 0.5419),
    "weighted_importance": (0.4933, 0.5145, 0.5333),
    "spectr": (0.4889, 0.5083, 0.5263),
    "specinfer": (0.4875, 0.5058, 0.5227),
}
PAPER_LABEL = "paper"
PAPER_NUM_DRAFTS = (2, 4, 8)
SCHEMES = {name: schemes.get(name) for name in (*PAPER, "gls", "poisson", "gumbel_topk")}
# The largest truncated program that the paper speaks of.
SCHEMES["weighted_importance_15"] = weighted_importance.truncated_at(15)


class Row(NamedTuple):
    """A mean over positions, or a number from the paper; `distributions` says on which pairs."""

    distributions: str
    scheme: str
    num_drafts: int
    acceptance: float
    num_positions: int | None


@dataclasses.dataclass(frozen=True)
class Khisti:
    """Khisti et al.: exact acceptance of schemes that know the draft distribution.

    Attributes:
        drop: First and last of the layers that the drafter leaves out.
        num_drafts: List lengths K.
        top_k: Tokens kept of each distribution.
        temperature: Of the target.
        draft_temperature: Of the drafter.
        num_prompts: Texts, at most eight.
        num_positions: First positions of each text.
        out: Folder for khisti.csv and khisti.png.
        full: Every position of the texts.
    """

    FULL: ClassVar[dict] = {"num_positions": 512}

    drop: tuple[int, int] = (12, 17)
    num_drafts: tuple[int, ...] = PAPER_NUM_DRAFTS
    top_k: tuple[int, ...] = (5, 10, 50)
    temperature: float = 1.0
    draft_temperature: float = 1.2
    num_prompts: int = 8
    num_positions: int = 32
    out: Path = Path("results/khisti")
    full: bool = False

    def run(self, report: Report) -> list:
        num_drafts = checks.counts(self.num_drafts, "num_drafts")
        top_ks = checks.counts(self.top_k, "top_k")
        rows: list[Row] = []
        num_done = 0
        for top_k in top_ks:
            log_p, log_q = shared.next_token_pairs(
                self.drop,
                num_prompts=self.num_prompts,
                num_positions=self.num_positions,
                top_k=top_k,
                temperature=self.temperature,
                draft_temperature=self.draft_temperature,
            )
            for name, scheme in SCHEMES.items():
                report("top-k and schemes", num_done, len(SCHEMES) * len(top_ks))
                curve = batched.acceptance_curves(scheme, log_p, log_q, num_drafts).mean(axis=0)
                rows += _curve_rows(f"top {top_k}", name, num_drafts, curve, len(log_q))
                num_done += 1
        for name, curve in PAPER.items():
            rows += _curve_rows(PAPER_LABEL, name, PAPER_NUM_DRAFTS, curve, None)
        target_text = f"SmolLM2 at temperature {self.temperature:g}"
        drafter_text = f"drafter without layers {self.drop[0]}-{self.drop[1]}"
        drafter_text += f" at {self.draft_temperature:g}"
        title = f"{target_text}, {drafter_text}, {rows[0].num_positions} positions"
        output.save_results(self.out, "khisti", rows, _figure(rows, title))
        return [_table(rows, f"exact mean acceptance; {title}")]


def _curve_rows(label: str, scheme: str, num_drafts, curve, num_positions) -> list[Row]:
    return [
        Row(label, scheme, k, float(acceptance), num_positions)
        for k, acceptance in zip(num_drafts, curve, strict=True)
    ]


def _table(rows: list[Row], title: str):
    num_drafts = sorted(set(column(rows, "num_drafts")))
    values = {row[:3]: row.acceptance for row in rows}
    table_lines = []
    for label, scheme in dict.fromkeys(row[:2] for row in rows):
        # The paper has three values of K, and this run perhaps others: None is an empty cell.
        curve = [values.get((label, scheme, k)) for k in num_drafts]
        gaps = [
            None if acceptance is None else acceptance - values[label, "optimal", k]
            for k, acceptance in zip(num_drafts, curve, strict=True)
        ]
        table_lines.append((label, scheme, *curve, *gaps))
    header = ["distributions", "scheme"]
    header += [f"K={k}" for k in num_drafts]
    header += [f"gap {k}" for k in num_drafts]
    return output.table(title, header, table_lines, "gap: to the optimum; paper: OPT pair on XSum")


def _figure(rows: list[Row], title: str) -> Figure:
    labels = distinct(rows, "distributions")
    figure = Figure(figsize=(3 * len(labels), 4.4), layout="constrained")
    for axes, label in zip(figure.subplots(1, len(labels)), labels, strict=True):
        # The paper has fewer schemes: the others have empty curves there, and the same colours.
        for scheme_index, scheme in enumerate(SCHEMES):
            curve_rows = select(rows, distributions=label, scheme=scheme)
            curve_rows.sort(key=lambda row: row.num_drafts)
            # The values of K are far apart: they are spaced evenly, and named.
            positions = range(len(curve_rows))
            line_style = f"C{scheme_index - 1}-o"
            if scheme == "optimal":
                line_style = "k:o"
                axes.set_xticks(positions, map(str, column(curve_rows, "num_drafts")))
            acceptances = column(curve_rows, "acceptance")
            axes.plot(positions, acceptances, line_style, markersize=3, label=scheme)
        axes.set(
            xlabel="number of drafts K",
            title="paper: OPT pair, XSum" if label == PAPER_LABEL else label,
        )
        axes.grid(alpha=0.3)
    # All panels have the same schemes: one legend below them.
    figure.axes[0].set_ylabel("mean acceptance")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure
