"""Predictions for every scheme and shape, from a dump and from costs, the fastest first."""

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
from gls_jax.schemes.function_types import PathVerification, Survival

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


def _path_survival() -> dict[str, Survival]:
    """Survival functions of the schemes that verify whole paths, where they are known."""
    found = {}
    for name in schemes.PATH_NAMES:
        verification = schemes.get(name).verification
        if isinstance(verification, PathVerification) and verification.survival is not None:
            found[name] = verification.survival
    return found


_PATH_SURVIVAL = _path_survival()

NAMES: tuple[str, ...] = (*conditional.NAMES, *_PATH_SURVIVAL)
"""Schemes that can be planned."""

_CUT_MASS = 1e-6  # of a tail: less than that is rounding


class Setting(NamedTuple):
    """A scheme and what it drafts: K chains of length L, or a static tree."""

    scheme: str
    num_drafts: int
    draft_length: int
    tree: tuple[int, ...] | None = None

    @property
    def shape(self) -> Shape:
        """What the engine drafts in a round."""
        return shape_of(schemes.get(self.scheme), self.num_drafts, self.draft_length, self.tree)


class Choice(NamedTuple):
    """The prediction for a setting.

    Attributes:
        setting: the setting.
        nodes: drafts that the target verifies in a call.
        block_efficiency: tokens per call of the target.
        standard_error: of it, over the texts of the dump.
        truncation: by how much it may be off because the dump is cut: half the difference between
            disjoint and merged tails.
        tokens_per_second: of the whole batch.
        speedup: over plain generation.
        acceptance_by_position: probability that the draft at each depth is accepted, given that
            those before it are; NaN at a depth that no text has.
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
    num_drafts = checks.counts(num_drafts, "num_drafts")
    lengths = checks.counts(lengths, "lengths")
    tree_widths = [checks.counts(widths, "trees") for widths in trees]
    all_settings = []
    for name in names:
        max_drafts = schemes.get(name).max_drafts or np.inf
        # A scheme of at most one draft has one chain, however many are asked for.
        for k in sorted({int(min(k, max_drafts)) for k in num_drafts}):
            all_settings += [Setting(name, k, length) for length in lengths]
        for widths in tree_widths:
            if max(widths) <= max_drafts:
                all_settings.append(Setting(name, max(widths), len(widths), widths))
    return all_settings


def efficiencies(
    dump: Dump,
    settings: Iterable[Setting],
    *,
    tails: str = "merged",
    progress: Callable[[int, int], None] | None = None,
) -> list[Efficiency]:
    """Block efficiency of each setting along the texts of a dump.

    Args:
        dump: distributions along texts that the target sampled.
        settings: what is drafted.
        tails: treatment of the truncated mass, see :meth:`gls_jax.distributions.Dump.pairs`.
        progress: called with `(settings done, settings)`.

    Raises:
        ValueError: a dump of another text. Its tokens are not samples of the target, and given
            them other drafts are accepted.
    """
    if not dump.configuration.get("own_text"):
        raise ValueError(
            f"{dump.folder}: expected a dump of the target's own text, got one of another text"
        )
    pairs = dump.pairs(tails=tails)
    settings = list(settings)
    most_drafts = max(setting.num_drafts for setting in settings)

    # Settings of one scheme share their kernels, which take most of the time.
    @cache
    def kernels(name: str, num_drafts: int) -> np.ndarray:
        return conditional.kernels(*pairs, scheme=name, num_drafts=num_drafts)

    result = []
    for done, setting in enumerate(settings):
        if progress is not None:
            progress(done, len(settings))
        name = setting.scheme
        if name in _PATH_SURVIVAL:
            survival = _PATH_SURVIVAL[name](*pairs, setting.draft_length)
        else:
            # The kernels of K drafts contain those of fewer, so one K serves all settings. But the
            # target of `gls_strong` looks at as many streams as the round has. It is the only
            # such scheme, so it is named here and no field of a scheme says so.
            num_drafts = schemes.get(name).max_drafts or most_drafts
            if name == "gls_strong":
                num_drafts = setting.num_drafts
            survival = rounds.shape_survival(setting.shape, kernels(name, num_drafts))
        result.append(rounds.block_efficiency(survival, dump.rows.begins))
    return result


def plan(
    dump: Dump,
    settings: Sequence[Setting],
    costs: Costs,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Choice]:
    """All settings with their predictions, the fastest first.

    Args:
        dump: distributions along texts that the target sampled.
        settings: what is drafted.
        costs: of this machine, or another.
        progress: called with `(settings done, settings)`.
    """
    # The prediction uses merged tails; the difference to disjoint tails is its uncertainty.
    merged = efficiencies(dump, settings, progress=progress)
    disjoint = merged
    if np.any(dump.rows.tail_p > _CUT_MASS) or np.any(dump.rows.tail_q > _CUT_MASS):
        disjoint = efficiencies(dump, settings, tails="disjoint")
    choices = []
    for setting, efficiency, other in zip(settings, merged, disjoint, strict=True):
        truncation = abs(efficiency.mean - other.mean) / 2
        choices.append(_choice(setting, efficiency, truncation, costs))
    return _fastest_first(choices)


def from_acceptances(
    acceptances: Sequence[float], settings: Sequence[Setting], costs: Costs
) -> list[Choice]:
    """All settings with predictions from measured acceptances instead of a dump.

    Args:
        acceptances: of the draft at each depth, given that those before it are accepted.
        settings: what is drafted, at most that deep.
        costs: of this machine, or another.

    Raises:
        ValueError: an acceptance that is not a probability.
    """
    check_acceptances(acceptances)
    choices = []
    for setting in settings:
        by_position = tuple(acceptances[: setting.shape.depth])
        # One token of the target, and each draft whose predecessors are accepted, too.
        mean = 1 + float(np.sum(np.cumprod(by_position)))
        efficiency = Efficiency(mean, standard_error=float("nan"), by_position=by_position)
        choices.append(_choice(setting, efficiency, 0.0, costs))
    return _fastest_first(choices)


def check_acceptances(acceptances: Sequence[float]) -> None:
    """Raise `ValueError` for an acceptance that is not a probability."""
    for acceptance in acceptances:
        if not 0 <= acceptance <= 1:
            raise ValueError(f"acceptances: expected numbers within 0..1, got {acceptance:g}")


def _choice(setting: Setting, efficiency: Efficiency, truncation: float, costs: Costs) -> Choice:
    # A round serves all requests of the batch.
    shape = setting.shape
    rate = costs.batch * efficiency.mean / costs.round(setting.scheme, shape)
    return Choice(
        setting=setting,
        nodes=shape.num_nodes,
        block_efficiency=efficiency.mean,
        standard_error=efficiency.standard_error,
        truncation=truncation,
        tokens_per_second=rate,
        speedup=rate * costs.plain() / costs.batch,
        acceptance_by_position=efficiency.by_position,
    )


def _fastest_first(choices: list[Choice]) -> list[Choice]:
    return sorted(choices, key=lambda choice: -choice.tokens_per_second)
