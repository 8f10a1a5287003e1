"""A plan: block efficiency and token rate of every scheme and shape, from a dump and from costs,
best first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from gls_jax import checks, schemes
from gls_jax.decoding.tree_shape import Shape, shape_of
from gls_jax.distributions import Dump
from gls_jax.planner import conditional, rounds
from gls_jax.planner.costs import Costs
from gls_jax.planner.rounds import Efficiency
from gls_jax.schemes.scheme import PathVerification

__all__ = [
    "NAMES",
    "Choice",
    "Setting",
    "check_acceptances",
    "efficiencies",
    "from_acceptances",
    "plan",
    "settings",
]

_PATH_SCHEMES = {
    name: scheme.verification.survival
    for name in schemes.PATH_NAMES
    if isinstance((scheme := schemes.get(name)).verification, PathVerification)
    and scheme.verification.survival is not None
}

NAMES: tuple[str, ...] = (*conditional.NAMES, *_PATH_SCHEMES)
"""Schemes that can be planned."""


class Setting(NamedTuple):
    """A scheme and what it drafts: K chains of length L, or a static tree."""

    scheme: str
    num_drafts: int
    draft_length: int
    tree: tuple[int, ...] | None = None

    @property
    def shape(self) -> Shape:
        """As the engine takes it."""
        return shape_of(schemes.get(self.scheme), self.num_drafts, self.draft_length, self.tree)


class Choice(NamedTuple):
    """What is predicted for a setting.

    Attributes:
        setting: which.
        nodes: drafts that the target verifies in a call.
        block_efficiency: tokens a call of the target.
        standard_error: of it, over the texts of the dump.
        truncation: by how much it may be off because the dump is cut, half the distance of two
            extreme readings.
        tokens_per_second: of the whole batch.
        speedup: against plain generation.
        acceptance_by_position: chance that the draft at each depth is accepted, given that those
            before it are; NaN at a depth that no text has.
    """

    setting: Setting
    nodes: int
    block_efficiency: float
    standard_error: float
    truncation: float
    tokens_per_second: float
    speedup: float
    acceptance_by_position: tuple[float, ...]


def settings(
    names: Sequence[str],
    num_drafts: Sequence[int],
    lengths: Sequence[int],
    trees: Sequence[Sequence[int]] = (),
) -> list[Setting]:
    """Every scheme with every K, L and tree that it takes.

    Raises:
        ValueError: a scheme that cannot be planned, or a number out of range.
    """
    if not names:
        raise ValueError(f"schemes: expected at least one of {', '.join(NAMES)}, got none")
    for name in names:
        checks.one_of(name, NAMES, "scheme")
    counts, lengths = checks.counts(num_drafts, "num_drafts"), checks.counts(lengths, "lengths")
    found = []
    for name in names:
        most = schemes.get(name).max_drafts
        own = sorted({k if most is None else min(k, most) for k in counts})
        found += [Setting(name, k, length) for k in own for length in lengths]
        wide = [checks.counts(widths, "trees") for widths in trees]
        found += [Setting(name, max(w), len(w), w) for w in wide if most is None or max(w) <= most]
    return found


def efficiencies(
    dump: Dump,
    asked: Iterable[Setting],
    *,
    tails: str = "shared",
    progress: Callable[[int, int], None] | None = None,
) -> list[Efficiency]:
    """Block efficiency of each setting along the texts of a dump.

    Args:
        dump: laws along texts of the target's own.
        asked: the settings.
        tails: how what the dump cut off is read, see :meth:`gls_jax.distributions.Dump.pairs`.
        progress: called with `(settings done, settings)`.

    Raises:
        ValueError: a dump of another text: its tokens are not samples of the target, and given them
            acceptances are others.
    """
    if not dump.facts["asked"].get("own_text"):
        raise ValueError(
            f"{dump.folder}: expected a dump of the target's own text, got one of another text"
        )
    pairs = dump.pairs(tails=tails)
    asked = list(asked)
    most = max(s.num_drafts for s in asked)

    @cache
    def kernels(name: str, num_drafts: int) -> np.ndarray:
        return conditional.kernels(*pairs, scheme=name, num_drafts=num_drafts)

    def reach(setting: Setting) -> np.ndarray:
        if setting.scheme in _PATH_SCHEMES:
            return _PATH_SCHEMES[setting.scheme](*pairs, setting.draft_length)
        # The streams of `gls_strong` are those of the round; other kernels hold those of fewer
        # drafts.
        own = (
            setting.num_drafts
            if setting.scheme == "gls_strong"
            else schemes.get(setting.scheme).max_drafts or most
        )
        return rounds.reach_of(setting.shape, kernels(setting.scheme, own))

    found = []
    for done, setting in enumerate(asked):
        if progress is not None:
            progress(done, len(asked))
        found.append(rounds.block_efficiency(reach(setting), dump.rows.begins))
    return found


def plan(
    dump: Dump,
    asked: Sequence[Setting],
    costs: Costs,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Choice]:
    """All settings with what is predicted for them, the fastest first.

    Args:
        dump: laws along texts of the target's own.
        asked: the settings.
        costs: of this machine, or another.
        progress: called with `(settings done, settings)`.
    """
    shared = efficiencies(dump, asked, progress=progress)
    cut = bool(np.any(dump.rows.tail_p > 1e-6) or np.any(dump.rows.tail_q > 1e-6))
    apart = efficiencies(dump, asked, tails="apart") if cut else shared
    choices = [
        _choice(setting, efficiency, abs(efficiency.mean - other.mean) / 2, costs)
        for setting, efficiency, other in zip(asked, shared, apart, strict=True)
    ]
    return sorted(choices, key=lambda each: -each.tokens_per_second)


def _choice(setting: Setting, efficiency: Efficiency, truncation: float, costs: Costs) -> Choice:
    """What a block efficiency is worth."""
    shape = setting.shape
    rate = costs.batch * efficiency.mean / costs.round(setting.scheme, shape)
    return Choice(
        setting,
        shape.num_nodes,
        efficiency.mean,
        efficiency.standard_error,
        truncation,
        rate,
        rate * costs.plain() / costs.batch,
        efficiency.by_position,
    )


def from_acceptances(
    acceptances: Sequence[float], asked: Sequence[Setting], costs: Costs
) -> list[Choice]:
    """The same from measured acceptances, whatever scheme they are of.

    Args:
        acceptances: of the draft at each depth, given that those before it are accepted.
        asked: settings of at most that depth.
        costs: of this machine, or another.

    Raises:
        ValueError: an acceptance that is no probability.
    """
    check_acceptances(acceptances)
    choices = []
    for setting in asked:
        some = tuple(acceptances[: setting.shape.depth])
        efficiency = Efficiency(1 + float(np.sum(np.cumprod(some))), float("nan"), some)
        choices.append(_choice(setting, efficiency, 0.0, costs))
    return sorted(choices, key=lambda each: -each.tokens_per_second)


def check_acceptances(acceptances: Sequence[float]) -> None:
    """Raise `ValueError` for an acceptance that is no probability."""
    for chance in acceptances:
        if not 0 <= chance <= 1:
            raise ValueError(f"acceptances: expected numbers within 0..1, got {chance:g}")
