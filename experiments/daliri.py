"""Daliri, Musco, Suresh 2024 (arXiv 2408.07978): how often two parties draw one token without a
word, against TV.

Next-token laws of a large and a small model at 32 positions of three prompts, 20,000 repetitions of
the Gumbel and the weighted MinHash coupling at each, P(a = b) drawn over TV between the curves 1 -
TV and (1 - TV) / (1 + TV). The paper takes gemma-2 models; here it is SmolLM2 and itself without
some layers, several drafters to spread TV. Beside each simulated point stands its exact value: the
coupling's own, which for MinHash lies above the lower curve, because the tokens also agree where
two different darts hit one item.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import shared
from gls_jax import bounds, couplings, races, trials

COUPLINGS = {
    "gumbel": (couplings.gumbel, couplings.gumbel_match),
    "minhash": (couplings.weighted_minhash, couplings.minhash_match),
}
_BLOCK = 16  # positions simulated between two progress reports
_NUMBERS = 2**14  # clocks or darts held at a time: a whole vocabulary goes one repetition at a time


_MEANS = ("tv", "lower", "exact", "simulated")


class Row(NamedTuple):
    """One position under one coupling; `lower` is (1 - TV) / (1 + TV), `upper` 1 - TV."""

    drafter: str
    position: int
    tv: float
    lower: float
    upper: float
    coupling: str
    exact: float
    simulated: float
    standard_error: float
    z: float


@dataclasses.dataclass(frozen=True)
class Daliri:
    """Daliri et al.: P(a = b) against TV on next-token laws, Gumbel and MinHash couplings,
    simulated and exact.
    """

    FULL: ClassVar[dict] = {"top_k": 0}

    drop: tuple[tuple[int, int], ...] = ((15, 15), (12, 17), (10, 19))
    """Drafters: first and last of the layers that each leaves out."""
    num_prompts: int = 3
    """Texts."""
    num_positions: int = 32
    """First positions of each text."""
    top_k: int = 50
    """Cut both laws to so many tokens; 0 keeps the vocabulary."""
    num_trials: int = 20_000
    """Repetitions a position and coupling."""
    seed: int = 0
    """Of the simulation."""
    out: Path = Path("results/daliri")
    """Folder for daliri.csv and daliri.png."""
    full: bool = False
    """The whole vocabulary; over an hour on two cores."""

    def run(self, report: shared.Report) -> list:
        key = shared.root_key(self.seed)
        trials.check_num_trials(self.num_trials)
        if not self.drop:
            raise ValueError(
                "drop: expected first and last layer of at least one drafter, got none"
            )
        rows = []
        with shared.unfinished(self.out) as keep:
            for at, dropped in enumerate(self.drop):
                asked = {
                    "num_prompts": self.num_prompts,
                    "num_positions": self.num_positions,
                    "top_k": self.top_k,
                }
                laws = shared.next_token_laws(dropped, **asked)
                rows += self._drafter(jax.random.fold_in(key, at), dropped, laws, keep, report)
        shared.write_csv(self.out / "daliri.csv", rows)
        kept = f"top {self.top_k} tokens of each" if self.top_k else "whole vocabulary"
        shared.save(
            self.out / "daliri.png", _figure(rows, f"SmolLM2 and itself with fewer layers, {kept}")
        )
        return [_table(rows, f"P(a = b), {self.num_trials:,} repetitions a position, {kept}")]

    def _drafter(self, key, dropped, laws, keep, report) -> list[Row]:
        name = "-{}..{}".format(*dropped)
        count = laws.log_q.shape[0]
        tv, lower = (
            shared.over_pairs(f, *laws) for f in (bounds.total_variation, bounds.communication_free)
        )
        blocks = [(c, start) for c in COUPLINGS for start in range(0, count, _BLOCK)]
        agreed = {c: np.zeros(count) for c in COUPLINGS}
        for done, (c, start) in enumerate(blocks):
            report(name, done, len(blocks))
            at = np.minimum(
                np.arange(start, start + _BLOCK), count - 1
            )  # the last block is filled up: one compilation
            part = [np.ascontiguousarray(law[at]) for law in laws]
            keys = races.keys.fold_in_each(key, at)
            asked = ("agreement", c, self.num_trials, self.seed, name, start, *part)
            found = keep(
                partial(
                    agreement, keys, *part, coupling=COUPLINGS[c][0], num_trials=self.num_trials
                ),
                *asked,
            )
            agreed[c][start : start + _BLOCK] = found[: count - start]
        report(name, len(blocks), len(blocks))
        rows = []
        for c, (_, match) in COUPLINGS.items():
            exact, mean = shared.over_pairs(match, *laws), agreed[c] / self.num_trials
            # Added to both sides, one agreement keeps the error of a rate near 0 or 1 from
            # vanishing.
            hit, miss = (agreed[c] + 1), (self.num_trials - agreed[c] + 1)
            error = np.sqrt(hit * miss / self.num_trials) / (self.num_trials + 2)
            for m, values in enumerate(
                zip(exact, mean, error, (mean - exact) / error, strict=True)
            ):
                at = (name, m, float(tv[m]), float(lower[m]), 1 - float(tv[m]), c)
                rows.append(Row(*at, *map(float, values)))
        return rows


@partial(jax.jit, static_argnames=("coupling", "num_trials"))
def agreement(keys, log_p, log_q, *, coupling, num_trials: int):
    """Of `num_trials` runs of the coupling, how often the samples agree, `i32[M]`."""

    def pair(laws):
        key, p, q = laws

        def agree(index):
            x, y = coupling(jax.random.fold_in(key, index), p, q)
            return x == y

        batch = max(1, min(num_trials, _NUMBERS // p.shape[0]))
        return jnp.sum(jax.lax.map(agree, jnp.arange(num_trials), batch_size=batch))

    return jax.lax.map(pair, (keys, log_p, log_q))


def _table(rows: list[Row], title: str):
    header = ("drafter", "coupling", "TV", "lower", "exact", "simulated", "above", "below", "|z|>3")
    lines = []
    for drafter in (*dict.fromkeys(row.drafter for row in rows), "all"):
        for c in COUPLINGS:
            part = [row for row in rows if row.coupling == c and drafter in (row.drafter, "all")]
            means = (
                float(np.mean([row[at] for row in part])) for at in map(Row._fields.index, _MEANS)
            )
            above = max(row.exact - row.lower for row in part)
            below = sum(row.simulated < row.lower - 3 * row.standard_error for row in part)
            lines.append((drafter, c, *means, above, below, sum(abs(row.z) > 3 for row in part)))
    note = "lower: (1-TV)/(1+TV); above: largest exact - lower; below: points more than 3 s.e. under the lower curve"
    return shared.table(title, header, lines, note)


def _figure(rows: list[Row], title: str) -> Figure:
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    grid = np.linspace(0, 1, 200)
    for colour, (axes, c) in enumerate(zip(panels, COUPLINGS, strict=False)):
        part = [row for row in rows if row.coupling == c]
        axes.plot(grid, 1 - grid, "k:", label="1 - TV")
        axes.plot(grid, (1 - grid) / (1 + grid), "k--", linewidth=1, label="(1 - TV) / (1 + TV)")
        tv = [row.tv for row in part]
        axes.plot(
            tv, [row.simulated for row in part], ".", color=f"C{colour}", label=f"{c}, simulated"
        )
        axes.plot(
            tv, [row.exact for row in part], "k+", markersize=4, linewidth=0.5, label=f"{c}, exact"
        )
        axes.set(xlabel="TV", ylabel="P(a = b)", title=f"{c} coupling")
        panels[2].plot(
            tv, [row.simulated - row.lower for row in part], ".", color=f"C{colour}", label=c
        )
    panels[2].plot(grid, 1 - grid - (1 - grid) / (1 + grid), "k:", label="1 - TV")
    panels[2].axhline(0, color="k", linestyle="--", linewidth=1)
    panels[2].set(
        xlabel="TV",
        ylabel="P(a = b) - (1 - TV) / (1 + TV)",
        title="simulated, above the lower curve",
    )
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure
