"""Which drafts a round makes: chosen from running estimates of acceptance and from costs.

A *mode* is a way to make the drafts of a round: none, chains or a tree of a model, or one chain by
look-up. Before every round the mode with most expected tokens per second is chosen, for the whole
batch:

    (1 + a_1 + a_1 a_2 + ... + a_1 ... a_L) / cost,

where `a_d` is the probability that a draft at depth `d` is accepted if those before it were. The
estimates count acceptances with weights that decay, from prior counts on. Chains of a model have
the same estimates whatever their length, each tree has its own, and look-up has some for each
length of match. While a mode is not used its counts decay to the prior ones, within some hundred
rounds: it is tried again if the prior promises that it pays.

The choice depends on the past only: on texts and acceptances before the round, and on costs. The
drafts of a round are verified as any other, so the law of the text is the target's for every
scheme, and under a strongly invariant scheme the text does not change at all. Under another scheme
the text does depend on the other requests of the batch and on measured costs, because both take
part in the choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gls_jax import checks
from gls_jax.decoding.lookup import LONGEST_MATCH, Match
from gls_jax.decoding.model import AnyModel, LanguageModel
from gls_jax.decoding.state import Mode
from gls_jax.decoding.tree_shape import (
    LARGEST_TREE,
    BestFirstTree,
    DynamicTree,
    MarginTree,
    Shape,
    shape_of,
)
from gls_jax.schemes import Scheme

__all__ = [
    "Auto",
    "Choice",
    "Drafters",
    "auto",
    "chain_shape",
    "choose_mode",
    "first_choice",
    "learn_acceptance",
]

# Factor on all counts after each round.
_DECAY = 0.98
# Prior counts, and the acceptance that they stand for: of a model, and by the length of the match.
_PRIOR_WEIGHT = 4.0
_MODEL_PRIOR = 0.5
_LOOKUP_PRIORS = (0.2, 0.4, 0.6, 0.85)
# Guesses of costs before any are measured: of a further token that the target reads, and of a call
# of a drafter, in plain steps.
_TOKEN_COST = 0.06
_DRAFT_COST = 0.05


TreeOption: TypeAlias = Sequence[int] | DynamicTree
"""A tree as decoding options have it: children at each depth, or a dynamic tree."""


@dataclasses.dataclass(frozen=True)
class Auto:
    """Drafting that is decided round by round; see :func:`auto`.

    Attributes:
        drafter: a model that drafts, or None.
        lookup: whether drafts may be looked up in the text.
        draft_lengths: lengths of the chains of the model.
        draft_trees: trees of the model; None takes those of :func:`usual_trees`.
        lookup_lengths: lengths of the chains by look-up.
        costs: of a round of each mode in plain steps, in the order of :meth:`modes`; None
            measures them.
    """

    drafter: AnyModel | None
    lookup: bool
    draft_lengths: tuple[int, ...]
    draft_trees: tuple[TreeOption, ...] | None
    lookup_lengths: tuple[int, ...]
    costs: tuple[float, ...] | None

    def modes(self, scheme: Scheme, num_drafts: int = 1) -> tuple[Mode, ...]:
        """The modes: plain generation, each length and tree of the model, each look-up length.

        Raises:
            ValueError: a tree that the scheme cannot verify, or another number of costs.
        """
        # Lists have one size in all modes, because the target's token may depend on it. That of a
        # scheme with dynamic trees does not.
        modes = [Mode("plain", chain_shape(0, num_drafts))]
        if self.drafter is not None:
            trees = usual_trees(scheme) if self.draft_trees is None else self.draft_trees
            shapes = [shape_of(scheme, num_drafts, length, None) for length in self.draft_lengths]
            shapes += [_tree_shape(scheme, num_drafts, tree) for tree in trees]
            modes += [Mode("model", shape) for shape in shapes]
        if self.lookup:
            shapes = [chain_shape(length, num_drafts) for length in self.lookup_lengths]
            modes += [Mode("lookup", shape) for shape in shapes]
        if self.costs is not None and len(self.costs) != len(modes):
            names = ", ".join(mode.name for mode in modes)
            raise ValueError(
                f"costs: expected {len(modes)} numbers, one for each of {names}, "
                f"got {len(self.costs)}"
            )
        return tuple(modes)


def chain_shape(length: int, num_drafts: int) -> Shape:
    """One chain of this length; without nodes at length 0, for plain generation."""
    return Shape(widths=(1,) * length, is_chains=length > 0, list_size=num_drafts)


def _tree_shape(scheme: Scheme, num_drafts: int, tree: TreeOption) -> Shape:
    shape = shape_of(scheme, num_drafts, 1, tree)
    if shape.dynamic:
        return shape
    if max(shape.widths) > num_drafts:
        raise ValueError(
            f"draft_trees: expected at most num_drafts ({num_drafts}) children, "
            f"got {max(shape.widths)}"
        )
    return dataclasses.replace(shape, list_size=num_drafts)


def usual_trees(scheme: Scheme) -> tuple[DynamicTree, ...]:
    """The trees of automatic drafting: of 3 and of 7 nodes, for schemes that have dynamic trees.

    With the last token of the text the target then reads 4 tokens or 8. On a CPU calls on 3
    and 4 tokens take little longer than on 2, and those on 5 to 8 all take the same time.
    """
    kinds: dict[str, type[DynamicTree]] = {"gumbel_topk": MarginTree, "topk": BestFirstTree}
    if scheme.name not in kinds:
        return ()
    tree = kinds[scheme.name]
    return tree(budget=3, depth=3), tree(budget=7, depth=4)


def auto(
    drafter: AnyModel | None = None,
    *,
    lookup: bool = True,
    draft_lengths: tuple[int, ...] = (3,),
    draft_trees: tuple[TreeOption, ...] | None = None,
    lookup_lengths: tuple[int, ...] = (7, 15),
    costs: tuple[float, ...] | None = None,
) -> Auto:
    """Drafting that is decided round by round: no drafts, a model's, or look-up in the text.

    Give the result to :func:`generate` in place of a drafter. It is for texts of which some repeat
    themselves or their prompt, and some do not: speculation that does not pay is left off. Lengths
    and trees are those given here; the options `draft_length` and `tree` have no part in it.

    Args:
        drafter: a model that drafts; None leaves that mode out.
        lookup: whether drafts may be what followed an earlier occurrence of the end of the text.
        draft_lengths: lengths of the chains of the model, from which one is chosen.
        draft_trees: trees of the model, each as `tree` of :class:`DecodeOptions`. None is two small
            dynamic trees for `gumbel_topk` and `topk`, and none for other schemes.
        lookup_lengths: lengths of the chains by look-up.
        costs: of a round of each mode, in plain steps: plain (1), then those of each draft length,
            each tree and each look-up length. None measures them in the first rounds of the first
            batch; the tokens of a scheme that is not strongly invariant then depend on these times,
            though not their distribution.

    Raises:
        ValueError: no source of drafts, lengths that are not positive, or costs that are not. Their
            number is checked when the scheme is known.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import decoding
    >>> cycle = decoding.from_function(
    ...     lambda params, tokens: params[tokens], 9 * jnp.eye(7)[::-1], 7
    ... )
    >>> auto = decoding.auto(costs=(1, 1.2, 1.4))
    >>> options = dict(max_new_tokens=32, temperature=0.5)
    >>> fast = decoding.generate(jax.random.key(1), cycle, auto, [[3, 1]], **options)
    >>> plain = decoding.generate(jax.random.key(1), cycle, None, [[3, 1]], **options)
    >>> bool((fast.tokens == plain.tokens).all()), fast.metrics.rounds < 10
    (True, True)
    """
    is_model = isinstance(drafter, LanguageModel) or hasattr(type(drafter), "language_model")
    if drafter is not None and not is_model:
        raise ValueError(f"auto: expected one drafter or None, got {type(drafter).__name__}")
    if drafter is None and not lookup:
        raise ValueError("auto: expected a drafter, or lookup=True, got neither")
    draft_lengths = checks.counts(draft_lengths, "draft_lengths")
    lookup_lengths = checks.counts(lookup_lengths, "lookup_lengths")
    # Before anything of that size is made.
    if max(lookup_lengths) > LARGEST_TREE:
        raise ValueError(
            f"lookup_lengths: expected at most {LARGEST_TREE}, got {max(lookup_lengths)}"
        )
    if costs is not None:
        costs = _checked_costs(costs)
    if draft_trees is not None:
        draft_trees = _checked_trees(draft_trees)
    return Auto(drafter, bool(lookup), draft_lengths, draft_trees, lookup_lengths, costs)


def _checked_costs(costs: object) -> tuple[float, ...]:
    try:
        numbers = np.asarray(costs, np.float64)
        is_valid = numbers.ndim == 1 and (numbers > 0).all() and np.isfinite(numbers).all()
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise ValueError(f"costs: expected positive numbers, got {costs!r}")
    return tuple(numbers.tolist())


def _checked_trees(trees: object) -> tuple[TreeOption, ...]:
    if not isinstance(trees, list | tuple) or any(isinstance(tree, str) for tree in trees):
        raise ValueError(
            "draft_trees: expected a list of trees, such as [(2, 1)] or [MarginTree(4, 3)], "
            f"got {trees!r}"
        )
    return tuple(
        tree if isinstance(tree, DynamicTree) else checks.counts(tree, "draft_trees")
        for tree in trees
    )


Drafters: TypeAlias = AnyModel | Sequence[AnyModel] | Auto | None
"""What drafts: one model, a model for each of K chains, automatic drafting, or nothing."""


class Choice(NamedTuple):
    """What the choice of a mode rests on.

    Attributes:
        accepted, tried: `f32[M + LONGEST_MATCH, D]`, decayed counts at each depth: of the M kinds
            of drafts of the model, then of look-up by the length of the match.
        costs: `f32[modes]`.
        forced: `i32[]`, the mode of the next round, where costs are measured; -1 to choose.
        rounds: `i32[modes]`, rounds in each mode.
        unread: `i32[]`, at most so many tokens of a text has the drafter not read.
    """

    accepted: Float[Array, "_ D"]
    tried: Float[Array, "_ D"]
    costs: Float[Array, " _"]
    forced: Int[Array, ""]
    rounds: Int[Array, " _"]
    unread: Int[Array, ""]


def first_choice(modes: tuple[Mode, ...], costs: tuple[float, ...] | None) -> Choice:
    """The counts and costs before the first round."""
    depth = max(mode.shape.depth for mode in modes)
    if costs is None:
        guesses = []
        for mode in modes:
            # A dynamic tree has a call of the drafter for each depth, too.
            num_calls = mode.shape.depth if mode.source == "model" else 0
            guesses.append(1 + _TOKEN_COST * mode.shape.num_nodes + _DRAFT_COST * num_calls)
        costs = tuple(guesses)
    num_rows = len(_model_kinds(modes)) + LONGEST_MATCH
    # Separate buffers, because the state is donated.
    return Choice(
        accepted=jnp.zeros((num_rows, depth)),
        tried=jnp.zeros((num_rows, depth)),
        costs=jnp.asarray(costs, jnp.float32),
        forced=jnp.int32(-1),
        rounds=jnp.zeros(len(modes), jnp.int32),
        unread=jnp.int32(0),
    )


def choose_mode(
    modes: tuple[Mode, ...], choice: Choice, match: Match, is_active: Array
) -> Int[Array, ""]:
    """The mode of the next round."""
    kinds = _model_kinds(modes)
    priors = jnp.array([*[_MODEL_PRIOR] * len(kinds), *_LOOKUP_PRIORS])[:, None]
    weight = choice.tried + _PRIOR_WEIGHT
    acceptance = (choice.accepted + _PRIOR_WEIGHT * priors) / weight
    # Expected accepted drafts up to every depth, for each kind and each length of match.
    expected = jnp.cumsum(jnp.cumprod(acceptance, axis=1), axis=1)
    # Where nothing matches there are no drafts.
    by_length = expected[len(kinds) :]
    by_match = jnp.concatenate([jnp.zeros_like(by_length[:1]), by_length])[match.length]
    num_active = jnp.maximum(jnp.sum(is_active), 1).astype(jnp.float32)
    values = []
    for number, mode in enumerate(modes):
        depth = mode.shape.depth
        if mode.source == "plain":
            num_accepted = jnp.zeros(())
        elif mode.source == "model":
            num_accepted = expected[kinds.index(_kind(mode)), depth - 1]
        else:
            num_accepted = jnp.sum(jnp.where(is_active, by_match[:, depth - 1], 0)) / num_active
        values.append((1 + num_accepted) / choice.costs[number])
    best = jnp.argmax(jnp.stack(values)).astype(jnp.int32)
    return jnp.where(choice.forced >= 0, choice.forced, best)


def learn_acceptance(
    modes: tuple[Mode, ...],
    choice: Choice,
    number: int,
    match: Match,
    counts: Int[Array, "B A"],
) -> Choice:
    """The choice after a round.

    Args:
        modes: all modes.
        choice: before the round.
        number: of the mode of the round, static.
        match: of the round.
        counts: 1 at the number of accepted drafts of each request, 0 elsewhere; all 0 for requests
            that do not count.
    """
    at_least = jnp.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    accepted_at, tried_at = at_least[:, 1:], at_least[:, :-1]
    mode = modes[number]
    tried_at = jnp.where(jnp.arange(tried_at.shape[1]) < mode.shape.depth, tried_at, 0)
    # Which row of the counts each request belongs to; -1 where it counts nowhere.
    kinds = _model_kinds(modes)
    row = jnp.full_like(match.length, -1)
    if mode.source == "model":
        row = jnp.full_like(row, kinds.index(_kind(mode)))
    elif mode.source == "lookup":
        row = jnp.where(match.length > 0, len(kinds) + match.length - 1, row)
    in_row = jnp.arange(len(choice.tried)) == row[:, None]
    weights = in_row.astype(jnp.float32)
    return choice._replace(
        accepted=_DECAY * choice.accepted + weights.T @ accepted_at.astype(jnp.float32),
        tried=_DECAY * choice.tried + weights.T @ tried_at.astype(jnp.float32),
        forced=jnp.int32(-1),
        rounds=choice.rounds.at[number].add(1),
    )


def _model_kinds(modes: tuple[Mode, ...]) -> list[Shape | str]:
    """The kinds of drafts of a model: chains of all lengths are one, and each tree is one."""
    kinds = [_kind(mode) for mode in modes if mode.source == "model"]
    return list(dict.fromkeys(kinds))


def _kind(mode: Mode) -> Shape | str:
    return "chains" if mode.shape.is_chains else mode.shape
