"""GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), Fig. 6: acceptance against K on random
pairs of laws.

100 pairs on N = 10 items, K = 1..20. The paper draws SpecTr, SpecInfer, GLS, the optimum by linear
programming and the list matching bound; here is every scheme that verifies one token, and the
optimum for drafts without replacement too. How the pairs were drawn is not said: here `p` and `q`
are independent and Dirichlet(1), uniform over the simplex. Lines are exact, points are simulated.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments import shared
from gls_jax import bounds, checks, races, schemes, trials
from gls_jax.distributions import pairs
from gls_jax.schemes import specinfer_wor

BOUNDS = {
    "list matching bound": bounds.list_matching,
    "optimum, distinct drafts": bounds.optimum_distinct,
}
SHARED = ("gls", "gls_strong", "poisson", "gumbel_topk", "minhash", "naive")  # the left panel
_MOST_CHAINS = 10**5  # of refusals that specinfer_wor enumerates for one exact value


class Row(NamedTuple):
    """A mean over all pairs; `method` is bound, exact, estimate (of the exact value) or simulated."""

    scheme: str
    num_drafts: int
    method: str
    acceptance: float
    standard_error: float | None = None


@dataclasses.dataclass(frozen=True)
class GlsFig6:
    """GLS paper, Fig. 6: acceptance against K on random pairs, every scheme, exact and simulated."""

    FULL: ClassVar[dict] = {"num_trials": 20_000, "num_chains": 20_000}

    num_pairs: int = 100
    """Random pairs."""
    num_items: int = 10
    """Items N."""
    max_drafts: int = 20
    """Largest K."""
    num_trials: int = 2_000
    """Simulated trials a pair and scheme."""
    num_chains: int = 2_000
    """Chains of refusals a pair, where there are too many to enumerate (specinfer_wor)."""
    schemes: tuple[str, ...] = schemes.NAMES
    """Schemes to compare; `optimal` is always among them."""
    seed: int = 0
    """Of the pairs and of the simulation."""
    out: Path = Path("results/gls_fig6")
    """Folder for gls_fig6.csv and gls_fig6.png."""
    full: bool = False
    """Ten times the trials and chains."""

    def run(self, report: shared.Report) -> list:
        counts = range(1, checks.count(self.max_drafts, "max_drafts") + 1)
        names = list(dict.fromkeys(("optimal", *self.schemes)))
        for name in names:
            schemes.get(name).check_token_level("acceptance")
        trials.check_num_trials(self.num_trials)
        key = shared.root_key(self.seed)
        laws = pairs.random(
            races.private_key(key), self.num_pairs, self.num_items
        )  # trials have the other folds
        rows = []
        for name, bound in BOUNDS.items():
            curve = shared.over_pairs(
                lambda *pair, f=bound: jnp.stack([f(*pair, k) for k in counts]), *laws
            )
            rows += [
                Row(name, k, "bound", float(x)) for k, x in zip(counts, curve.mean(0), strict=True)
            ]
        with shared.unfinished(self.out) as keep:
            for at, name in enumerate(names):
                report("schemes", at, len(names))
                rows += self._lines(name, counts, laws, key, keep)
                rows += self._points(name, counts, laws, key, keep)
            report("schemes", len(names), len(names))
        shared.write_csv(self.out / "gls_fig6.csv", rows)
        title = f"{self.num_pairs} random pairs (Dirichlet(1)) on {self.num_items} items"
        shared.save(self.out / "gls_fig6.png", _figure(rows, title))
        return [_table(rows, title)]

    def _lines(self, name: str, counts, laws: pairs.Pairs, key, keep) -> list[Row]:
        counts = _within(counts, schemes.get(name).max_drafts)
        if name == "specinfer_wor":
            return [self._without_replacement(k, laws, key, keep) for k in counts]
        if name == "weighted_importance":  # a program for each K: compiles long
            counts = [k for k in counts if k <= 8 or k % 4 == 0]
        values = keep(
            lambda: shared.exact(schemes.get(name), *laws, counts), "exact", name, counts, *laws
        )
        return [
            Row(name, k, "exact", float(x)) for k, x in zip(counts, values.mean(0), strict=True)
        ]

    def _without_replacement(self, k: int, laws: pairs.Pairs, key, keep) -> Row:
        """Exact where the chains of refusals are few or the list is every item, else an estimate
        over random chains.
        """
        name = "specinfer_wor"
        if k >= self.num_items:
            return Row(name, k, "exact", 1.0)
        if math.perm(self.num_items, max(k - 2, 0)) <= _MOST_CHAINS:
            values = keep(
                lambda: shared.exact(schemes.get(name), *laws, [k]), "exact", name, k, *laws
            )
            return Row(name, k, "exact", float(values.mean()))

        def estimate():
            walk = partial(
                specinfer_wor.acceptance_estimate, num_drafts=k, num_chains=self.num_chains
            )
            keys = races.split_key(jax.random.fold_in(races.private_key(key), 1), self.num_pairs)
            return shared.over_pairs(lambda *pair: walk(*pair)[:2], keys, *laws)

        return Row(
            name,
            k,
            "estimate",
            *_pooled(keep(estimate, "chains", k, self.num_chains, self.seed, *laws)),
        )

    def _points(self, name: str, counts, laws: pairs.Pairs, key, keep) -> list[Row]:
        if (
            name == "optimal"
        ):  # its verification solves a linear program on the host, for every pair and K
            return []
        most = {
            "weighted_importance": 8,
            "specinfer_wor": self.num_items,
        }  # time of K^2 matches; then every item is in
        counts = _within(counts, schemes.get(name).max_drafts, most.get(name))

        def simulate():
            found = trials.sweep(
                key, *laws, scheme=name, num_drafts=counts, num_trials=self.num_trials
            )
            return found.mean, found.standard_error

        found = keep(simulate, "simulated", name, counts, self.num_trials, self.seed, *laws)
        return [Row(name, k, "simulated", *_pooled(found[:, :, at])) for at, k in enumerate(counts)]


def _within(counts, *most: int | None) -> list[int]:
    return [k for k in counts if all(limit is None or k <= limit for limit in most)]


def _pooled(found: np.ndarray) -> tuple[float, float]:
    """Means and standard errors of the pairs `[2, M]`, to the mean over pairs and its standard
    error.
    """
    mean, error = found
    return float(mean.mean()), float(np.sqrt((error**2).sum()) / error.size)


def _table(rows: list[Row], title: str):
    shown = [k for k in (1, 2, 4, 8, 16, 20) if any(row.num_drafts == k for row in rows)]
    values = {
        (row.scheme, row.num_drafts): row.acceptance for row in rows if row.method != "simulated"
    }
    points = [row for row in rows if row.method == "simulated"]
    lines = []
    for name in dict.fromkeys(row.scheme for row in rows):
        off = [
            abs(row.acceptance - values[name, row.num_drafts]) / row.standard_error
            for row in points
            if row.scheme == name and (name, row.num_drafts) in values
        ]
        lines.append(
            [name, *(values.get((name, k), "") for k in shown), f"{max(off):.1f}" if off else ""]
        )
    return shared.table(title, ("scheme", *(f"K={k}" for k in shown), "max |z|"), lines)


def _figure(rows: list[Row], title: str) -> Figure:
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    names = [
        name
        for name in dict.fromkeys(row.scheme for row in rows)
        if name not in (*BOUNDS, "optimal")
    ]
    kinds = {"shared randomness alone": True, "the verifier knows the draft law": False}
    for axes, (kind, blind) in zip(panels, kinds.items(), strict=True):
        for name, style in zip((*BOUNDS, "optimal"), ("k--", "k-.", "k:"), strict=True):
            label = "optimal (i.i.d. drafts)" if name == "optimal" else name
            axes.plot(*_curve(rows, name), style, linewidth=1, label=label)
        for colour, name in enumerate(name for name in names if (name in SHARED) == blind):
            ks, values = _curve(rows, name)
            one = (
                {"marker": "x", "linestyle": ""}
                if len(ks) == 1
                else {"linestyle": "--" if name == "gls_strong" else "-"}
            )
            axes.plot(
                ks,
                values,
                color=f"C{colour}",
                label=f"{name} (K = 1)" if len(ks) == 1 else name,
                **one,
            )
            points = [row for row in rows if (row.scheme, row.method) == (name, "simulated")]
            axes.errorbar(
                [row.num_drafts for row in points],
                [row.acceptance for row in points],
                [2 * row.standard_error for row in points],
                fmt=".",
                color=f"C{colour}",
            )
        axes.set(xlabel="number of drafts K", title=kind)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="lower right")
    panels[0].set_ylabel("P(target token is in the list)")
    figure.suptitle(
        f"{title}\nlines and crosses exact, points simulated, ±2 s.e.", fontsize="medium"
    )
    return figure


def _curve(rows: list[Row], name: str) -> tuple[list[int], list[float]]:
    line = sorted(
        (row.num_drafts, row.acceptance)
        for row in rows
        if row.scheme == name and row.method != "simulated"
    )
    return [k for k, _ in line], [value for _, value in line]
