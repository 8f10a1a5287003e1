"""Daliri, Musco, Suresh 2024 (arXiv 2408.07978): agreement without communication, against TV.

The paper takes next-token distributions of a large and a small model at 32 positions of three
prompts, and 20,000 repetitions of the Gumbel and the weighted MinHash coupling at each. It draws
P(a = b) over the total variation distance (TV) between the curves 1 - TV and (1 - TV) / (1 + TV).
Its models are gemma-2; here they are SmolLM2 and itself without some layers, with several drafters
to spread TV. Each simulated point is compared with the exact value of its coupling. For MinHash
that lies above the lower curve, because the tokens also agree where two different darts hit one
token.
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

from experiments import output, shared
from experiments.output import column, select
from gls_jax import bounds, couplings, trials, work_shape
from gls_jax.distributions import pairs
from gls_jax.exact import batched
from gls_jax.loops import map_in_batches
from gls_jax.typing import Report
from gls_jax.work_shape import WorkShape

# Each coupling, and the exact probability that its two samples agree.
COUPLINGS = {
    "gumbel": (couplings.gumbel, couplings.gumbel_match),
    "minhash": (couplings.weighted_minhash, couplings.minhash_match),
}

# Positions that are simulated between two progress reports.
_BLOCK = 16


class Row(NamedTuple):
    """One position under one coupling; `lower` is (1 - TV) / (1 + TV), `upper` is 1 - TV."""

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
    """Daliri et al.: P(a = b) against TV, Gumbel and MinHash couplings, simulated and exact.

    Attributes:
        drop: Drafters: first and last of the layers that each leaves out.
        num_prompts: Texts.
        num_positions: First positions of each text.
        top_k: Cut both distributions to this many tokens; 0 keeps the vocabulary.
        num_trials: Repetitions for each position and coupling.
        seed: Of the simulation.
        out: Folder for daliri.csv and daliri.png.
        full: The whole vocabulary; over an hour on two cores.
    """

    FULL: ClassVar[dict] = {"top_k": 0}

    drop: tuple[tuple[int, int], ...] = ((15, 15), (12, 17), (10, 19))
    num_prompts: int = 3
    num_positions: int = 32
    top_k: int = 50
    num_trials: int = 20_000
    seed: int = 0
    out: Path = Path("results/daliri")
    full: bool = False

    def run(self, report: Report) -> list:
        key = shared.root_key(self.seed)
        trials.check_num_trials(self.num_trials)
        if not self.drop:
            raise ValueError(
                "drop: expected first and last layer of at least one drafter, got none"
            )
        rows: list[Row] = []
        # A run that is stopped continues at the block that was interrupted.
        with shared.resumable_arrays(self.out) as compute_once:
            for index, dropped in enumerate(self.drop):
                rows += self._drafter_rows(index, dropped, key, compute_once, report)
        tokens_text = f"top {self.top_k} tokens of each" if self.top_k else "whole vocabulary"
        figure = _figure(rows, f"SmolLM2 and itself with fewer layers, {tokens_text}")
        output.save_results(self.out, "daliri", rows, figure)
        title = f"P(a = b), {self.num_trials:,} repetitions per position, {tokens_text}"
        return [_table(rows, title)]

    def _drafter_rows(self, index: int, dropped, key, compute_once, report) -> list[Row]:
        """All positions of one drafter under both couplings."""
        drafter = f"-{dropped[0]}..{dropped[1]}"
        model_pairs = shared.next_token_pairs(
            dropped,
            num_prompts=self.num_prompts,
            num_positions=self.num_positions,
            top_k=self.top_k,
        )
        tv = batched.over_pairs(bounds.total_variation, *model_pairs).tolist()
        lower = batched.over_pairs(bounds.communication_free, *model_pairs).tolist()
        drafter_key = jax.random.fold_in(key, index)
        agreements = self._agreements(drafter_key, drafter, model_pairs, compute_once, report)
        rows = []
        for coupling, (_, exact_match) in COUPLINGS.items():
            exact = batched.over_pairs(exact_match, *model_pairs)
            num_agreed = agreements[coupling]
            simulated = num_agreed / self.num_trials
            # Added to both sides, one repetition keeps the error of a rate near 0 or 1 from
            # vanishing.
            variance = (num_agreed + 1) * (self.num_trials - num_agreed + 1) / self.num_trials
            errors = np.sqrt(variance) / (self.num_trials + 2)
            z = (simulated - exact) / errors
            # Python floats, which a CSV file has in full.
            for position in range(len(tv)):
                row = Row(
                    drafter=drafter,
                    position=position,
                    tv=tv[position],
                    lower=lower[position],
                    upper=1 - tv[position],
                    coupling=coupling,
                    exact=float(exact[position]),
                    simulated=float(simulated[position]),
                    standard_error=float(errors[position]),
                    z=float(z[position]),
                )
                rows.append(row)
        return rows

    def _agreements(
        self, key, drafter: str, model_pairs: pairs.Pairs, compute_once, report
    ) -> dict[str, np.ndarray]:
        """In how many repetitions the samples agree, by coupling, `f64[M]`."""
        num_pairs = len(model_pairs.log_q)
        starts = range(0, num_pairs, _BLOCK)
        counts = {coupling: np.zeros(num_pairs) for coupling in COUPLINGS}
        blocks = [(coupling, start) for coupling in COUPLINGS for start in starts]
        for num_done, (coupling, start) in enumerate(blocks):
            report(drafter, num_done, len(blocks))
            # The last block is filled up with the last position, so that all have one shape and
            # compile once.
            positions = np.minimum(np.arange(start, start + _BLOCK), num_pairs - 1)
            log_p = np.ascontiguousarray(model_pairs.log_p[positions])
            log_q = np.ascontiguousarray(model_pairs.log_q[positions])
            position_keys = jax.vmap(partial(jax.random.fold_in, key))(positions)
            compute = partial(
                agreement,
                position_keys,
                log_p,
                log_q,
                coupling=COUPLINGS[coupling][0],
                num_trials=self.num_trials,
                shape=work_shape.current(),
            )
            configuration = (coupling, self.num_trials, self.seed, drafter, start, log_p, log_q)
            num_agreed = compute_once(compute, "agreement", *configuration)
            counts[coupling][start : start + _BLOCK] = num_agreed[: num_pairs - start]
        report(drafter, len(blocks), len(blocks))
        return counts


@partial(jax.jit, static_argnames=("coupling", "num_trials", "shape"))
def agreement(keys, log_p, log_q, *, coupling, num_trials: int, shape: WorkShape):
    """In how many of `num_trials` runs of the coupling the samples agree, `i32[M]`."""

    def count(pair):
        key, p, q = pair

        def agree(index):
            x, y = coupling(jax.random.fold_in(key, index), p, q)
            return x == y

        # Memory is bounded: as many repetitions at a time as suit the platform.
        most_at_once = max(1, shape.trial_numbers // p.shape[0])
        return jnp.sum(map_in_batches(agree, jnp.arange(num_trials), most_at_once))

    return jax.lax.map(count, (keys, log_p, log_q))


def _table(rows: list[Row], title: str):
    header = ("drafter", "coupling", "TV", "lower", "exact", "simulated", "above", "below", "|z|>3")
    table_lines = []
    for drafter in (*output.distinct(rows, "drafter"), "all"):
        drafter_rows = rows if drafter == "all" else select(rows, drafter=drafter)
        for coupling in COUPLINGS:
            part_rows = select(drafter_rows, coupling=coupling)
            mean_fields = ("tv", "lower", "exact", "simulated")
            means = [float(np.mean(column(part_rows, field))) for field in mean_fields]
            largest_gap = max(row.exact - row.lower for row in part_rows)
            num_below = sum(row.simulated < row.lower - 3 * row.standard_error for row in part_rows)
            num_far = sum(abs(row.z) > 3 for row in part_rows)
            table_lines.append((drafter, coupling, *means, largest_gap, num_below, num_far))
    note = (
        "lower: (1-TV)/(1+TV); above: largest exact - lower; "
        "below: points more than 3 s.e. under the lower curve"
    )
    return output.table(title, header, table_lines, note)


def _figure(rows: list[Row], title: str) -> Figure:
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    # The two curves.
    tv_grid = np.linspace(0, 1, 200)
    upper_curve = 1 - tv_grid
    lower_curve = (1 - tv_grid) / (1 + tv_grid)
    difference_axes = panels[2]
    for panel_index, coupling in enumerate(COUPLINGS):
        coupling_rows = select(rows, coupling=coupling)
        tv = column(coupling_rows, "tv")
        simulated = column(coupling_rows, "simulated")
        color = f"C{panel_index}"
        # A panel for the coupling, with both curves.
        axes = panels[panel_index]
        axes.plot(tv_grid, upper_curve, "k:", label="1 - TV")
        axes.plot(tv_grid, lower_curve, "k--", linewidth=1, label="(1 - TV) / (1 + TV)")
        axes.plot(tv, simulated, ".", color=color, label=f"{coupling}, simulated")
        exact = column(coupling_rows, "exact")
        axes.plot(tv, exact, "k+", markersize=4, linewidth=0.5, label=f"{coupling}, exact")
        axes.set(xlabel="TV", ylabel="P(a = b)", title=f"{coupling} coupling")
        # Both couplings go into the panel of differences.
        differences = [row.simulated - row.lower for row in coupling_rows]
        difference_axes.plot(tv, differences, ".", color=color, label=coupling)
    # The lower curve is zero there.
    difference_axes.plot(tv_grid, upper_curve - lower_curve, "k:", label="1 - TV")
    difference_axes.axhline(0, color="k", linestyle="--", linewidth=1)
    difference_axes.set(
        xlabel="TV",
        ylabel="P(a = b) - (1 - TV) / (1 + TV)",
        title="simulated, above the lower curve",
    )
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure
