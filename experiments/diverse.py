"""GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), Table 2: two drafts from drafters at
different temperatures.

The paper's target samples at temperature 2.0, its two drafters at (0.5, 1), (1, 0.5) and (1, 1),
and it reports block efficiency and token rate of GLS and SpecInfer over whole texts; SpecTr needs
one draft law. Here is the acceptance of one position at the same temperatures, exact, on next-token
laws of SmolLM2 drafted by itself without layers 12-17, top 50 tokens of each. One step of
verification is compared, not texts: what differs between the schemes, not the numbers.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import shared
from gls_jax import bounds, schemes
from gls_jax.schemes import weighted_importance

BOUND = "list matching bound"
SCHEMES = {name: schemes.get(name) for name in ("gls", "specinfer", "weighted_importance", "naive")}
SCHEMES["weighted_importance_15"] = weighted_importance.truncated_at(
    15
)  # the paper's largest program


class Row(NamedTuple):
    """A mean over positions."""

    first_temperature: float
    second_temperature: float
    scheme: str
    acceptance: float
    num_positions: int


@dataclasses.dataclass(frozen=True)
class Diverse:
    """GLS paper, Table 2: exact acceptance of two drafts at different temperatures, in both orders."""

    FULL: ClassVar[dict] = {"num_positions": 512}

    draft_temperatures: tuple[tuple[float, float], ...] = ((0.5, 1.0), (1.0, 0.5), (1.0, 1.0))
    """Of the two drafters."""
    temperature: float = 2.0
    """Of the target."""
    drop: tuple[int, int] = (12, 17)
    """First and last of the layers that the drafters leave out."""
    top_k: int = 50
    """Tokens kept of each law."""
    num_prompts: int = 8
    """Texts, at most eight."""
    num_positions: int = 32
    """First positions of each text."""
    out: Path = Path("results/diverse")
    """Folder for diverse.csv and diverse.png."""
    full: bool = False
    """Every position of the texts."""

    def run(self, report: shared.Report) -> list:
        if not self.draft_temperatures:
            raise ValueError("draft_temperatures: expected at least one pair, got none")
        rows = []
        for done, temperatures in enumerate(self.draft_temperatures):
            report("draft temperatures", done, len(self.draft_temperatures))
            laws = self._laws(temperatures)
            values = {name: shared.exact(scheme, *laws, [2]) for name, scheme in SCHEMES.items()}
            values[BOUND] = shared.over_pairs(partial(bounds.list_matching, num_drafts=2), *laws)
            rows += [
                Row(*temperatures, name, float(x.mean()), x.shape[0]) for name, x in values.items()
            ]
        shared.write_csv(self.out / "diverse.csv", rows)
        title = f"K = 2, target SmolLM2 at temperature {self.temperature:g}, {rows[0].num_positions} positions, "
        title += f"top {self.top_k}\ndrafters without layers {self.drop[0]}-{self.drop[1]}"
        shared.save(self.out / "diverse.png", _figure(rows, title))
        return [_table(rows, f"exact mean acceptance; {title}")]

    def _laws(self, draft_temperatures):
        """Draft laws `[M, 2, N]` and target laws `[M, N]`."""
        asked = {
            "num_prompts": self.num_prompts,
            "num_positions": self.num_positions,
            "top_k": self.top_k,
        }
        asked["temperature"] = self.temperature
        one, two = (
            shared.next_token_laws(self.drop, **asked, draft_temperature=t)
            for t in draft_temperatures
        )
        if not np.array_equal(
            one.log_q, two.log_q
        ):  # temperature 0 keeps one token and not the top 50
            raise ValueError(
                f"draft_temperatures: expected positive temperatures, got {draft_temperatures}"
            )
        return np.stack([one.log_p, two.log_p], axis=1), one.log_q


def _label(pair) -> str:
    return "({:g}, {:g})".format(*pair)


def _table(rows: list[Row], title: str):
    values = {(row.scheme, row[:2]): row.acceptance for row in rows}
    pairs = list(dict.fromkeys(row[:2] for row in rows))
    lines = [
        (name, *(values[name, pair] for pair in pairs))
        for name in dict.fromkeys(row.scheme for row in rows)
    ]
    return shared.table(title, ("draft temperatures", *map(_label, pairs)), lines)


def _figure(rows: list[Row], title: str) -> Figure:
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    pairs = list(dict.fromkeys(row[:2] for row in rows))
    names = list(dict.fromkeys(row.scheme for row in rows))
    for at, name in enumerate(names):
        heights = [row.acceptance for row in rows if row.scheme == name]
        places = np.arange(len(pairs)) + (at - (len(names) - 1) / 2) * 0.14
        bars = axes.bar(
            places, heights, 0.13, label=name, color="0.7" if name == BOUND else f"C{at}"
        )
        axes.bar_label(bars, fmt="%.3f", fontsize=6)
    axes.set_xticks(range(len(pairs)), map(_label, pairs))
    axes.set(xlabel="temperatures of the first and second draft", ylabel="mean acceptance")
    axes.set_title(title, fontsize="medium")
    axes.margins(y=0.25)
    axes.legend(fontsize="small", ncols=3)
    return figure
