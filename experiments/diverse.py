"""GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), Table 2: two draft temperatures.

The paper's target samples at temperature 2.0, its two drafters at (0.5, 1), (1, 0.5) and (1, 1). It
reports block efficiency and token rate of GLS and SpecInfer over whole texts; SpecTr needs drafts
from one distribution. Here the acceptance of one position is computed at the same temperatures,
exactly, on next-token distributions of SmolLM2 drafted by itself without layers 12-17, top 50
tokens of each. Only one step of verification is compared: it shows how the schemes differ, but not
the paper's numbers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import output, shared
from experiments.output import column, distinct, select
from gls_jax import bounds, schemes
from gls_jax.exact import batched
from gls_jax.schemes import weighted_importance
from gls_jax.typing import Report

BOUND = "list matching bound"
SCHEMES = {name: schemes.get(name) for name in ("gls", "specinfer", "weighted_importance", "naive")}
# The largest truncated program that Khisti et al. speak of.
SCHEMES["weighted_importance_15"] = weighted_importance.truncated_at(15)


class Row(NamedTuple):
    """A mean over positions."""

    first_temperature: float
    second_temperature: float
    scheme: str
    acceptance: float
    num_positions: int


@dataclasses.dataclass(frozen=True)
class Diverse:
    """GLS paper, Table 2: exact acceptance of two drafts at different temperatures.

    Attributes:
        draft_temperatures: Of the two drafters.
        temperature: Of the target.
        drop: First and last of the layers that the drafters leave out.
        top_k: Tokens kept of each distribution.
        num_prompts: Texts, at most eight.
        num_positions: First positions of each text.
        out: Folder for diverse.csv and diverse.png.
        full: Every position of the texts.
    """

    FULL: ClassVar[dict] = {"num_positions": 512}

    draft_temperatures: tuple[tuple[float, float], ...] = ((0.5, 1.0), (1.0, 0.5), (1.0, 1.0))
    temperature: float = 2.0
    drop: tuple[int, int] = (12, 17)
    top_k: int = 50
    num_prompts: int = 8
    num_positions: int = 32
    out: Path = Path("results/diverse")
    full: bool = False

    def run(self, report: Report) -> list:
        if not self.draft_temperatures:
            raise ValueError("draft_temperatures: expected at least one pair, got none")
        rows = []
        # The order of the two temperatures matters to schemes that test one draft after the other.
        for num_done, temperatures in enumerate(self.draft_temperatures):
            report("draft temperatures", num_done, len(self.draft_temperatures))
            log_p, log_q = self._diverse_pairs(temperatures)
            for name, acceptance in _acceptances(log_p, log_q).items():
                mean = float(acceptance.mean())
                rows.append(Row(*temperatures, name, mean, len(acceptance)))
        target_text = f"target SmolLM2 at temperature {self.temperature:g}"
        title = (
            f"K = 2, {target_text}, {rows[0].num_positions} positions, top {self.top_k}\n"
            f"drafters without layers {self.drop[0]}-{self.drop[1]}"
        )
        output.save_results(self.out, "diverse", rows, _figure(rows, title))
        return [_table(rows, f"exact mean acceptance; {title}")]

    def _diverse_pairs(
        self, draft_temperatures: tuple[float, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of both drafters `[M, 2, N]` and of the target `[M, N]`."""
        first, second = [
            shared.next_token_pairs(
                self.drop,
                num_prompts=self.num_prompts,
                num_positions=self.num_positions,
                top_k=self.top_k,
                temperature=self.temperature,
                draft_temperature=draft_temperature,
            )
            for draft_temperature in draft_temperatures
        ]
        # Both are cut to the union of the models' top tokens. Temperature 0 keeps one token only,
        # and then the columns differ.
        if not np.array_equal(first.log_q, second.log_q):
            raise ValueError(
                f"draft_temperatures: expected positive temperatures, got {draft_temperatures}"
            )
        return np.stack([first.log_p, second.log_p], axis=1), first.log_q


def _acceptances(log_p: np.ndarray, log_q: np.ndarray) -> dict[str, np.ndarray]:
    """Acceptance of two drafts at every position, `f[M]`, by scheme, and its lower bound."""
    acceptances = {
        name: batched.acceptance_curves(scheme, log_p, log_q, [2])[:, 0]
        for name, scheme in SCHEMES.items()
    }
    acceptances[BOUND] = batched.over_pairs(bounds.list_matching, log_p, log_q, static=(2,))
    return acceptances


def _label(temperatures: tuple[float, float]) -> str:
    return f"({temperatures[0]:g}, {temperatures[1]:g})"


def _table(rows: list[Row], title: str):
    temperatures = list(dict.fromkeys(row[:2] for row in rows))
    values = {(row.scheme, row[:2]): row.acceptance for row in rows}
    table_lines = []
    for scheme in distinct(rows, "scheme"):
        table_lines.append((scheme, *(values[scheme, pair] for pair in temperatures)))
    return output.table(title, ("draft temperatures", *map(_label, temperatures)), table_lines)


def _figure(rows: list[Row], title: str) -> Figure:
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    temperatures = list(dict.fromkeys(row[:2] for row in rows))
    schemes_shown = distinct(rows, "scheme")
    for bar_index, scheme in enumerate(schemes_shown):
        # Bars of all schemes side by side, centred at each pair of temperatures.
        offset = (bar_index - (len(schemes_shown) - 1) / 2) * 0.14
        bars = axes.bar(
            np.arange(len(temperatures)) + offset,
            column(select(rows, scheme=scheme), "acceptance"),
            0.13,
            label=scheme,
            color="0.7" if scheme == BOUND else f"C{bar_index}",
        )
        axes.bar_label(bars, fmt="%.3f", fontsize=6)
    # Room above the bars for their numbers and the legend.
    axes.margins(y=0.25)
    axes.set_xticks(range(len(temperatures)), map(_label, temperatures))
    axes.set(xlabel="temperatures of the first and second draft", ylabel="mean acceptance")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small", ncols=3)
    return figure
