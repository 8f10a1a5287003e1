"""GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), Fig. 6: acceptance on random pairs.

The paper has 100 pairs of distributions on N = 10 categories, K = 1..20, and draws SpecTr,
SpecInfer, GLS, the optimum by linear programming and the list matching bound. Here every scheme
that verifies one token is compared, and the optimum for drafts without replacement too. The paper
does not say how its pairs were drawn: here `p` and `q` are independent and Dirichlet(1), uniform
over the simplex. Lines are exact, points are simulated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments import output, shared
from experiments.output import column, distinct, select
from gls_jax import bounds, checks, races, schemes, trials
from gls_jax.distributions import pairs
from gls_jax.exact import batched
from gls_jax.schemes import specinfer_wor
from gls_jax.typing import Report

BOUNDS = {
    "list matching bound": bounds.list_matching,
    "optimum, distinct drafts": bounds.optimum_distinct,
}
# The left panel: schemes whose target never looks at the draft distribution.
BLIND_SCHEMES = ("gls", "gls_strong", "poisson", "gumbel_topk", "minhash", "naive")
# Line styles of what is in both panels.
_IN_BOTH_PANELS = dict(zip((*BOUNDS, "optimal"), ("k--", "k-.", "k:"), strict=True))
# `specinfer_wor` sums over chains of rejected drafts, at most this many for one exact value.
_MOST_CHAINS = 10**5


class Row(NamedTuple):
    """A mean over all pairs; `method` is bound, exact, estimate (of the exact value), simulated."""

    scheme: str
    num_drafts: int
    method: str
    acceptance: float
    standard_error: float | None = None


class _Problem(NamedTuple):
    """The random pairs, the key of all simulations, and the store of arrays."""

    pairs: pairs.Pairs
    key: jax.Array
    compute_once: shared.ComputeOnce


@dataclasses.dataclass(frozen=True)
class GlsFig6:
    """GLS paper, Fig. 6: acceptance on random pairs, every scheme, exact and simulated.

    Attributes:
        num_pairs: Random pairs.
        num_categories: Categories N.
        max_drafts: Largest K.
        num_trials: Simulated trials for each pair and scheme.
        num_chains: Random chains of rejected drafts for each pair, where all are too many
            (specinfer_wor).
        schemes: Schemes to compare; `optimal` is always among them.
        seed: Of the pairs and of the simulation.
        out: Folder for gls_fig6.csv and gls_fig6.png.
        full: Ten times the trials and chains.
    """

    FULL: ClassVar[dict] = {"num_trials": 20_000, "num_chains": 20_000}

    num_pairs: int = 100
    num_categories: int = 10
    max_drafts: int = 20
    num_trials: int = 2_000
    num_chains: int = 2_000
    schemes: tuple[str, ...] = schemes.NAMES
    seed: int = 0
    out: Path = Path("results/gls_fig6")
    full: bool = False

    def run(self, report: Report) -> list:
        num_drafts = range(1, checks.count(self.max_drafts, "max_drafts") + 1)
        names = list(dict.fromkeys(("optimal", *self.schemes)))
        # Schemes that look at whole paths have no acceptance of one token.
        for name in names:
            schemes.get(name).check_token_level("acceptance")
        trials.check_num_trials(self.num_trials)
        key = shared.root_key(self.seed)
        # The pairs come from a fold of the key that trials do not use.
        random_pairs = pairs.random(races.private_key(key), self.num_pairs, self.num_categories)
        rows: list[Row] = []
        for name, bound in BOUNDS.items():
            values = batched.over_pairs(_bound_curve, *random_pairs, static=(bound, num_drafts))
            rows += _mean_rows(name, "bound", num_drafts, values)
        with shared.resumable_arrays(self.out) as compute_once:
            problem = _Problem(random_pairs, key, compute_once)
            for num_done, name in enumerate(names):
                report("schemes", num_done, len(names))
                rows += self._exact_rows(name, num_drafts, problem)
                rows += self._simulated_rows(name, num_drafts, problem)
            report("schemes", len(names), len(names))
        title = f"{self.num_pairs} random pairs (Dirichlet(1)) on {self.num_categories} categories"
        output.save_results(self.out, "gls_fig6", rows, _figure(rows, title))
        return [_table(rows, title)]

    def _exact_rows(self, name: str, num_drafts: Sequence[int], problem: _Problem) -> list[Row]:
        """The line of a scheme."""
        num_drafts = _at_most(schemes.get(name).max_drafts, num_drafts)
        if name == "specinfer_wor":
            return [self._without_replacement_row(k, problem) for k in num_drafts]
        # Each K is a separate program, which compiles long: 1..8, 12, 16, ...
        if name == "weighted_importance":
            num_drafts = [k for k in num_drafts if k <= 8 or k % 4 == 0]
        return _mean_rows(name, "exact", num_drafts, _exact(name, num_drafts, problem))

    def _without_replacement_row(self, num_drafts: int, problem: _Problem) -> Row:
        """`specinfer_wor`: exact where that is possible, else an estimate over random chains."""
        name = "specinfer_wor"
        # A list of all categories is always right.
        if num_drafts >= self.num_categories:
            return Row(name, num_drafts, "exact", 1.0)
        if math.perm(self.num_categories, max(num_drafts - 2, 0)) <= _MOST_CHAINS:
            values = _exact(name, [num_drafts], problem)
            return Row(name, num_drafts, "exact", float(values.mean()))

        def estimate() -> tuple[np.ndarray, np.ndarray]:
            # A fold for each pair, apart from those of the pairs and of the trials.
            key = jax.random.fold_in(races.private_key(problem.key), 1)
            keys = races.split_key(key, self.num_pairs)
            static = (num_drafts, self.num_chains)
            return batched.over_pairs(_mean_and_error, keys, *problem.pairs, static=static)

        configuration = ("chains", num_drafts, self.num_chains, self.seed, *problem.pairs)
        means, errors = problem.compute_once(estimate, *configuration)
        return Row(name, num_drafts, "estimate", *_pooled(means, errors))

    def _simulated_rows(self, name: str, num_drafts: Sequence[int], problem: _Problem) -> list[Row]:
        """The points of a scheme."""
        num_drafts = _at_most(schemes.get(name).max_drafts, num_drafts)
        # Its time grows as K^2.
        if name == "weighted_importance":
            num_drafts = _at_most(8, num_drafts)
        # Then every category is in the list.
        if name == "specinfer_wor":
            num_drafts = _at_most(self.num_categories, num_drafts)

        def simulate():
            estimate = trials.sweep(
                problem.key,
                *problem.pairs,
                scheme=name,
                num_drafts=num_drafts,
                num_trials=self.num_trials,
            )
            return estimate.mean, estimate.standard_error

        configuration = ("simulated", name, num_drafts, self.num_trials, self.seed, *problem.pairs)
        means, errors = problem.compute_once(simulate, *configuration)
        return [
            Row(name, k, "simulated", *_pooled(means[:, i], errors[:, i]))
            for i, k in enumerate(num_drafts)
        ]


def _at_most(limit: int | None, num_drafts: Sequence[int]) -> list[int]:
    return [k for k in num_drafts if limit is None or k <= limit]


def _bound_curve(log_p, log_q, bound: Callable, num_drafts: Sequence[int]) -> jax.Array:
    return jnp.stack([bound(log_p, log_q, k) for k in num_drafts])


def _exact(name: str, num_drafts: list[int], problem: _Problem) -> np.ndarray:
    """Exact acceptance of all pairs, `f[M, C]`."""
    compute = partial(batched.acceptance_curves, schemes.get(name), *problem.pairs, num_drafts)
    return problem.compute_once(compute, "exact", name, num_drafts, *problem.pairs)


def _mean_and_error(key, log_p, log_q, num_drafts: int, num_chains: int):
    estimate = specinfer_wor.acceptance_estimate(
        key, log_p, log_q, num_drafts=num_drafts, num_chains=num_chains
    )
    return estimate[:2]


def _mean_rows(scheme: str, method: str, num_drafts, values: np.ndarray) -> list[Row]:
    """Rows of the means over pairs, from values `[M, C]`."""
    means = values.mean(axis=0)
    return [Row(scheme, k, method, float(mean)) for k, mean in zip(num_drafts, means, strict=True)]


def _pooled(means: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """The mean over pairs and its standard error, from those of each pair `[M]`."""
    return float(means.mean()), float(np.sqrt((errors**2).sum()) / errors.size)


def _table(rows: list[Row], title: str):
    largest_k = max(column(rows, "num_drafts"))
    num_drafts = [k for k in (1, 2, 4, 8, 16, 20) if k <= largest_k]
    line_values = {row[:2]: row.acceptance for row in rows if row.method != "simulated"}
    table_lines = []
    for scheme in distinct(rows, "scheme"):
        # Distances of the points from the line, in standard errors.
        distances = [
            abs(row.acceptance - line_values[row[:2]]) / row.standard_error
            for row in select(rows, scheme=scheme, method="simulated")
            if row[:2] in line_values
        ]
        largest_distance = f"{max(distances):.1f}" if distances else ""
        curve = [line_values.get((scheme, k)) for k in num_drafts]
        table_lines.append((scheme, *curve, largest_distance))
    header = ("scheme", *(f"K={k}" for k in num_drafts), "max |z|")
    return output.table(title, header, table_lines)


def _figure(rows: list[Row], title: str) -> Figure:
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    blind, knowing = [], []
    for scheme in distinct(rows, "scheme"):
        if scheme in BLIND_SCHEMES:
            blind.append(scheme)
        elif scheme not in _IN_BOTH_PANELS:
            knowing.append(scheme)
    _draw_panel(left, rows, blind, "shared randomness alone")
    _draw_panel(right, rows, knowing, "the verifier knows the draft distribution")
    left.set_ylabel("P(target token is in the list)")
    figure.suptitle(
        f"{title}\nlines and crosses exact, points simulated, ±2 s.e.", fontsize="medium"
    )
    return figure


def _draw_panel(axes, rows: list[Row], names: list[str], title: str) -> None:
    for reference, line_style in _IN_BOTH_PANELS.items():
        label = "optimal (i.i.d. drafts)" if reference == "optimal" else reference
        axes.plot(*_curve(rows, reference), line_style, linewidth=1, label=label)
    for color_index, name in enumerate(names):
        color = f"C{color_index}"
        num_drafts, acceptances = _curve(rows, name)
        # One value is a cross. `gls` and `gls_strong` lie on each other: one is dashed.
        if len(num_drafts) == 1:
            axes.plot(num_drafts, acceptances, "x", color=color, label=f"{name} (K = 1)")
        else:
            line_style = "--" if name == "gls_strong" else "-"
            axes.plot(num_drafts, acceptances, line_style, color=color, label=name)
        points = select(rows, scheme=name, method="simulated")
        axes.errorbar(
            column(points, "num_drafts"),
            column(points, "acceptance"),
            2 * np.array(column(points, "standard_error")),
            fmt=".",
            color=color,
        )
    axes.set(xlabel="number of drafts K", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")


def _curve(rows: list[Row], name: str) -> tuple[list[int], list[float]]:
    """The exact line of a scheme: values of K, and acceptances."""
    line_rows = [row for row in select(rows, scheme=name) if row.method != "simulated"]
    line_rows.sort(key=lambda row: row.num_drafts)
    return column(line_rows, "num_drafts"), column(line_rows, "acceptance")
