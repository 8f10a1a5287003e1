"""The canonical decomposition of list verification (Khisti et al. 2025, arXiv 2410.18234).

Verification of a list chooses one of its drafts, and then applies single-draft speculative sampling
of `q` with the distribution `r` of the chosen one. The acceptance is ``sum_i min(q_i, r_i)``. A
scheme decides only the choice, and the best choice is a linear program over the sets of drafts.

These are host functions in float64 for small problems, and the closed forms are tested against
them. For i.i.d. drafts :mod:`gls_jax.schemes.optimal` attains the best choice at any size.
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
    "MOST_CATEGORIES",
    "Selection",
    "always_accepts",
    "best_selection",
    "selected_distribution",
    "set_distribution",
]

MOST_CATEGORIES = 12
"""Most categories for `set_distribution` and `best_selection`, which look at all 2^N sets."""

_MAX_LISTS = 10**6


class Selection(NamedTuple):
    """A rule that chooses one draft of a list.

    Attributes:
        choose: `f64[2^N, N]`, probability to choose category `i` from the set with bit mask `D`;
            rows of possible sets sum to 1.
        distribution: `f64[N]`, the distribution `r` of the chosen category.
        acceptance: ``sum_i min(q_i, r_i)``, the value of the program.
    """

    choose: np.ndarray
    distribution: np.ndarray
    acceptance: float


def set_distribution(draft_probs: Numbers) -> np.ndarray:
    """``P(set of drafts = D)`` for every bit mask `D`, for independent drafts.

    Args:
        draft_probs: probabilities `[K, N]`, one row per draft, `N <= MOST_CATEGORIES`.

    Returns:
        `f64[2^N]`; a sum of positive terms, draft by draft.

    >>> from gls_jax import decomposition
    >>> decomposition.set_distribution([[0.5, 0.5], [0.5, 0.5]]).tolist()  # {}, {0}, {1}, {0, 1}
    [0.0, 0.25, 0.25, 0.5]
    """
    return _set_distribution(_checked_draft_probs(draft_probs))


def _checked_draft_probs(draft_probs: Numbers) -> np.ndarray:
    shape = checks.floats(draft_probs, "draft_probs").shape
    if len(shape) != 2 or not 1 <= shape[1] <= MOST_CATEGORIES:
        raise ValueError(
            f"draft_probs: expected shape [K, N] with N within 1..{MOST_CATEGORIES}, "
            f"got {list(shape)}"
        )
    return checks.host_probabilities(draft_probs, "draft_probs")


def _set_distribution(draft_probs: np.ndarray) -> np.ndarray:
    # A set is a bit mask, and row by row one more draft joins it.
    sets = np.arange(2 ** draft_probs.shape[1])
    set_probs = (sets == 0).astype(np.float64)
    for row in draft_probs:
        next_probs = np.zeros_like(set_probs)
        for category, prob in enumerate(row):
            # A set with this category comes from itself, and from the same set without it.
            contains = sets >> category & 1 == 1
            without = sets[contains] ^ (1 << category)
            next_probs[contains] += prob * (set_probs[contains] + set_probs[without])
        set_probs = next_probs
    return set_probs


def best_selection(draft_probs: Numbers, q: Numbers) -> Selection:
    """The choice of highest acceptance, by linear programming (HiGHS).

    It maximises the mass `f(D, i)` that sets `D` pass to their categories, at most `P(D)` from a
    set and `q_i` into a category.

    Args:
        draft_probs: probabilities `[K, N]` of independent drafts, one row per draft, `N <=
            MOST_CATEGORIES`.
        q: target probabilities `[N]`.

    Returns:
        :class:`Selection`.

    Raises:
        ValueError: shapes that do not fit, rows that are not probabilities of sum 1, or too many
            categories.

    >>> from gls_jax import decomposition
    >>> round(decomposition.best_selection([[0.5, 0.5]] * 2, [0.9, 0.1]).acceptance, 6)
    0.85
    """
    import scipy.optimize
    import scipy.sparse

    draft_probs = _checked_draft_probs(draft_probs)
    shape = checks.floats(q, "q").shape
    if shape != draft_probs.shape[1:]:
        raise ValueError(f"q: expected shape [{draft_probs.shape[1]}], got {list(shape)}")
    q = checks.host_probabilities(q, "q")
    set_probs = _set_distribution(draft_probs)
    num_sets = len(set_probs)
    size = q.size
    is_member = (np.arange(num_sets)[:, None] >> np.arange(size) & 1).astype(bool)
    # A variable for each possible set and each category in it.
    possible_sets = np.flatnonzero(set_probs)
    sets, categories = np.nonzero(is_member[possible_sets])
    num_variables = len(sets)
    # A constraint for each set, then one for each category; every variable is in one of both.
    columns = np.tile(np.arange(num_variables), 2)
    rows = np.concatenate([sets, len(possible_sets) + categories])
    ones = np.ones(2 * num_variables)
    shape = (len(possible_sets) + size, num_variables)
    solved = scipy.optimize.linprog(
        -np.ones(num_variables),
        A_ub=scipy.sparse.csr_array((ones, (rows, columns)), shape=shape),
        b_ub=np.concatenate([set_probs[possible_sets], np.maximum(q, 0)]),
        bounds=(0, None),
        method="highs",
    )
    if solved.status != 0:
        raise ValueError(
            "draft_probs and q: expected probabilities, got a program without a solution "
            f"({solved.message})"
        )
    passed = np.zeros((num_sets, size))
    passed[possible_sets[sets], categories] = np.maximum(solved.x, 0)
    # The mass that a set could not pass on is shared among its categories: the probabilities of
    # these only grow, and so no min(q, r) becomes smaller.
    set_sizes = np.maximum(is_member.sum(1, keepdims=True), 1)
    left_over = np.maximum(set_probs - passed.sum(1), 0)[:, None]
    passed += np.where(is_member, left_over / set_sizes, 0)
    # An impossible set chooses any of its categories.
    totals = passed.sum(1, keepdims=True)
    any_member = is_member / set_sizes
    choose = np.divide(passed, totals, out=any_member, where=totals > 0)
    distribution = set_probs @ choose
    acceptance = float(np.minimum(q, distribution).sum())
    return Selection(choose=choose, distribution=distribution, acceptance=acceptance)


def selected_distribution(
    rule: Callable[[jax.Array], jax.Array],
    log_p: LogProbs,
    num_drafts: int,
) -> Float[Array, " N"]:
    """The distribution `r` of the draft that a selection rule chooses, from all possible lists.

    Args:
        rule: maps drafts `i32[K]` to the probabilities `f[K]` with which each draft of the list is
            chosen.
        log_p: `[N]`, or `[K, N]` for one distribution per draft.
        num_drafts: `K`; at most a million lists.

    Returns:
        `f[N]`. The acceptance of the rule followed by speculative sampling of `q` is ``sum_i
        min(q_i, r_i)``. It is higher only if a rejected choice can be replaced by another draft of
        the list.

    Raises:
        ValueError: shapes that do not fit, too many lists, or what :func:`gls_jax.check_log_probs`
            raises.

    >>> import jax.numpy as jnp
    >>> from gls_jax import decomposition
    >>> smallest = lambda drafts: jnp.arange(2) == jnp.argmin(drafts)
    >>> log_p = jnp.log(jnp.array([0.5, 0.5]))
    >>> decomposition.selected_distribution(smallest, log_p, 2).tolist()
    [0.75, 0.25]
    """
    num_drafts = checks.count(num_drafts, "num_drafts")
    log_probs = checks.draft_distributions(log_p, num_drafts)
    checks.values(log_p, "log_p")
    size = log_probs.shape[-1]
    if size**num_drafts > _MAX_LISTS:
        raise ValueError(
            f"num_drafts: expected at most {_MAX_LISTS} lists, got {size}^{num_drafts}"
        )
    draft_probs = jnp.broadcast_to(races.weights(log_probs), (num_drafts, size))
    # Every list [L, K] with its probability [L]; the rule then chooses a draft of each.
    drafts = jnp.unravel_index(jnp.arange(size**num_drafts), (size,) * num_drafts)
    lists = jnp.stack(drafts, axis=1)
    list_probs = jnp.prod(draft_probs[jnp.arange(num_drafts), lists], axis=1)
    choice_probs = jax.vmap(rule)(lists).astype(list_probs.dtype)
    chosen_probs = list_probs[:, None] * choice_probs
    return jnp.zeros(size, chosen_probs.dtype).at[lists].add(chosen_probs)


def always_accepts(
    log_p: LogProbs,
    log_q: LogProbs,
    num_drafts: int,
    *,
    atol: float = 1e-6,
) -> Bool[Array, ""]:
    """Whether acceptance 1 is possible with `K` i.i.d. drafts: ``q(H) >= p(H)^K`` for all sets `H`.

    The worst sets are prefixes of the categories in the order of `q / p`, so only `N` of them are
    checked. Theorem 2 of Khisti et al. is `K = 2`.

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
    contained = jnp.minimum(ranked.mass, 1) ** num_drafts
    slack = jnp.cumsum(ranked.q) - contained
    # Prefixes end before the categories that cannot be drafted.
    slack = jnp.where(ranked.p > 0, slack, 0)
    return jnp.min(slack) >= -atol
