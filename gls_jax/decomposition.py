"""The canonical decomposition of list verification (Khisti et al. 2025, arXiv 2410.18234).

Verifying a list is choosing one of its drafts, and then single-draft speculative sampling of `q`
against the law `r` of the chosen one: acceptance ``sum_i min(q_i, r_i)``. All that a scheme decides
is the choice; the best one is a linear program over the sets of drafts. Host functions in float64
for small problems: the truth that closed forms are held to, and the plan of
:mod:`gls_jax.schemes.optimal`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gls_jax import checks, races
from gls_jax.exact.ratio_order import ratio_order
from gls_jax.typing import LogProbs, Numbers

__all__ = [
    "MOST_ITEMS",
    "Selection",
    "always_accepts",
    "best_selection",
    "importance_law",
    "set_law",
]

MOST_ITEMS = 12
"""Largest number of items for `set_law` and `best_selection`: the program has a row for each of the
2^N sets.
"""
_MOST_LISTS = 10**6


class Selection(NamedTuple):
    """How to choose one draft of a list.

    Attributes:
        choose: `f64[2^N, N]`, chance to choose item `i` from the set with bit mask `D`; rows of
            possible sets sum to 1.
        law: `f64[N]`, the law `r` of the chosen item.
        acceptance: ``sum_i min(q_i, r_i)``, the value of the program.
    """

    choose: np.ndarray
    law: np.ndarray
    acceptance: float


def set_law(laws: Numbers) -> np.ndarray:
    """``P(set of drafts = D)`` for every bit mask `D`, of independent drafts with the given laws.

    Args:
        laws: probabilities `[K, N]`, `N <= MOST_ITEMS`.

    Returns:
        `f64[2^N]`; a sum of positive terms, draft by draft.

    >>> from gls_jax import decomposition
    >>> decomposition.set_law([[0.5, 0.5], [0.5, 0.5]]).tolist()  # nobody, {0}, {1}, both
    [0.0, 0.25, 0.25, 0.5]
    """
    return _set_law(_checked_laws(laws))


def _checked_laws(laws) -> np.ndarray:
    shape = checks.floats(laws, "laws").shape
    if len(shape) != 2 or not 1 <= shape[1] <= MOST_ITEMS:
        raise ValueError(
            f"laws: expected shape [K, N] with N within 1..{MOST_ITEMS}, got {list(shape)}"
        )
    return checks.host_probabilities(laws, "laws")


def _set_law(laws: np.ndarray) -> np.ndarray:
    sets = np.arange(2 ** laws.shape[1])
    chance = (sets == 0).astype(np.float64)
    for law in laws:
        after = np.zeros_like(chance)
        for item, mass in enumerate(law):
            has = sets >> item & 1 == 1
            after[has] += mass * (chance[has] + chance[sets[has] ^ (1 << item)])
        chance = after
    return chance


def best_selection(laws: Numbers, q: Numbers) -> Selection:
    """The choice of highest acceptance, by linear programming (HiGHS).

    Maximise the mass `f(D, i)` that sets `D` pass to their items, at most `P(D)` from a set and
    `q_i` into an item.

    Args:
        laws: probabilities `[K, N]` of independent drafts, one row a draft, `N <= MOST_ITEMS`.
        q: target probabilities `[N]`.

    Returns:
        :class:`Selection`.

    Raises:
        ValueError: shapes that do not fit, what are no probabilities of sum 1, or too many items.

    >>> from gls_jax import decomposition
    >>> round(decomposition.best_selection([[0.5, 0.5]] * 2, [0.9, 0.1]).acceptance, 6)
    0.85
    """
    laws, shape = _checked_laws(laws), checks.floats(q, "q").shape
    if shape != laws.shape[1:]:
        raise ValueError(f"q: expected shape [{laws.shape[1]}], got {list(shape)}")
    return solve_selection(laws, checks.host_probabilities(q, "q"))


def solve_selection(laws: np.ndarray, q: np.ndarray) -> Selection:
    """:func:`best_selection` of probabilities that need no check."""
    import scipy.optimize
    import scipy.sparse

    chance, size = _set_law(laws), q.size
    possible = np.flatnonzero(chance)
    sets, items = np.nonzero(possible[:, None] >> np.arange(size) & 1)
    if not len(sets):  # no drafts at all
        return Selection(np.zeros((len(chance), size)), np.zeros(size), 0.0)
    columns = np.arange(len(sets))
    rows = np.concatenate([sets, len(possible) + items])
    shape = (len(possible) + size, len(sets))
    limits = scipy.sparse.csr_array(
        (np.ones(2 * len(sets)), (rows, np.tile(columns, 2))), shape=shape
    )
    solved = scipy.optimize.linprog(
        -np.ones(len(sets)),
        A_ub=limits,
        b_ub=np.concatenate([chance[possible], np.maximum(q, 0)]),
        bounds=(0, None),
        method="highs",
    )
    if solved.status != 0:
        raise ValueError(
            f"laws and q: expected probabilities, got a program without a solution ({solved.message})"
        )
    passed = np.zeros((len(chance), size))
    passed[possible[sets], items] = np.maximum(solved.x, 0)
    member = (np.arange(len(chance))[:, None] >> np.arange(size) & 1).astype(bool)
    # What a set cannot place is shared among its items: their law only grows, and with it no min(q,
    # r) falls.
    spare = np.maximum(chance - passed.sum(1), 0) / np.maximum(member.sum(1), 1)
    passed += np.where(member, spare[:, None], 0)
    total = passed.sum(1, keepdims=True)
    even = member / np.maximum(member.sum(1, keepdims=True), 1)
    choose = np.divide(passed, total, out=even, where=total > 0)
    law = chance @ choose
    return Selection(choose, law, float(np.minimum(q, law).sum()))


def importance_law(
    rule: Callable[[jax.Array], jax.Array], log_p: LogProbs, num_drafts: int
) -> Float[Array, " N"]:
    """The law `r` of the draft that a selection rule chooses, by enumeration of all lists.

    Args:
        rule: maps drafts `i32[K]` to the chances `f[K]` with which each place of the list is
            chosen.
        log_p: `[N]`, or `[K, N]` for one law a draft.
        num_drafts: `K`; at most a million lists.

    Returns:
        `f[N]`. Acceptance of the rule followed by speculative sampling of `q` is ``sum_i min(q_i,
        r_i)``, and more only where a refused choice happens to be replaced by another draft of the
        list.

    Raises:
        ValueError: shapes that do not fit, too many lists, or what :func:`gls_jax.check_log_probs`
            raises.

    >>> import jax.numpy as jnp
    >>> from gls_jax import decomposition
    >>> smallest = lambda drafts: jnp.arange(2) == jnp.argmin(drafts)
    >>> decomposition.importance_law(smallest, jnp.log(jnp.array([0.5, 0.5])), 2).tolist()
    [0.75, 0.25]
    """
    num_drafts = checks.count(num_drafts, "num_drafts")
    given, log_p = log_p, checks.draft_distributions(log_p, num_drafts)
    checks.values(given, "log_p")
    size = log_p.shape[-1]
    if size**num_drafts > _MOST_LISTS:
        raise ValueError(
            f"num_drafts: expected at most {_MOST_LISTS} lists, got {size}^{num_drafts}"
        )
    laws = jnp.broadcast_to(races.weights(log_p), (num_drafts, size))
    lists = jnp.stack(jnp.unravel_index(jnp.arange(size**num_drafts), (size,) * num_drafts), axis=1)
    chance = jnp.prod(laws[jnp.arange(num_drafts), lists], axis=1)
    mass = chance[:, None] * jax.vmap(rule)(lists).astype(chance.dtype)
    return jnp.zeros(size, mass.dtype).at[lists].add(mass)


def always_accepts(
    log_p: LogProbs, log_q: LogProbs, num_drafts: int, *, atol: float = 1e-6
) -> Bool[Array, ""]:
    """Whether acceptance 1 is possible with `K` i.i.d. drafts: ``q(H) >= p(H)^K`` for every set `H`
    of items.

    The worst sets are prefixes of the items in order of `q / p`, so `N` of them are looked at.
    Theorem 2 of Khisti et al. is `K = 2`.

    Args:
        log_p, log_q: `[N]`.
        num_drafts: `K`.
        atol: slack of the inequalities, for float rounding.

    >>> import jax.numpy as jnp
    >>> from gls_jax import decomposition
    >>> log_p, log_q = jnp.log(jnp.array([[0.5, 0.5], [0.7, 0.3]]))
    >>> [bool(decomposition.always_accepts(log_p, log_q, k)) for k in (1, 2)]
    [False, True]
    """
    num_drafts = checks.count(num_drafts, "num_drafts")
    log_p, log_q = checks.problem(log_p, log_q)
    ranked = ratio_order(log_p, log_q)
    short = jnp.cumsum(ranked.q) - jnp.minimum(ranked.mass, 1) ** num_drafts
    return jnp.min(jnp.where(ranked.p > 0, short, 0)) >= -atol
