"""Records of a run: static configuration, constants of the requests, state, and drafts."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeAlias

from jax import Array

from gls_jax.decoding.batch_sampling import BatchSampling
from gls_jax.decoding.model import LanguageModel
from gls_jax.decoding.tree_shape import Shape
from gls_jax.schemes import Scheme, Tree
from gls_jax.work_shape import WorkShape

__all__ = ["Caches", "Drafts", "EngineConfig", "Requests", "State", "Text"]

Caches: TypeAlias = tuple[Any, ...]
"""The caches of the drafters."""


@dataclasses.dataclass(frozen=True)
class Mode:
    """One way to make the drafts of a round.

    Attributes:
        source: "plain" for no drafts, "model", or "lookup".
        shape: of the draft tree.
    """

    source: str
    shape: Shape

    @property
    def name(self) -> str:
        """Such as `plain`, `lookup 4` or `model tree 4,3`."""
        shape = self.shape
        if shape.dynamic:
            return f"{self.source} tree {shape.dynamic.budget},{shape.depth}"
        if shape.widths and not shape.is_chains:
            return f"{self.source} tree {'-'.join(map(str, shape.widths))}"
        return f"{self.source} {shape.depth}" if shape.depth else self.source


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """The configuration of the engine, a static argument of the compiled functions.

    Attributes:
        scheme: proposes and verifies.
        shape: of the draft tree.
        drafter_chains: numbers of the chains that each drafter makes; a single drafter makes all.
        num_cache_slots: `S`, slots in each row of the caches.
        work: how wide to compute.
        modes: the ways to make drafts, if one is chosen in every round; `shape` is then as deep as
            the deepest, and says how much room counts and texts need.
        source: of the drafts, see :class:`Mode`; with `modes` that of the present round.
    """

    scheme: Scheme
    shape: Shape
    drafter_chains: tuple[tuple[int, ...], ...]
    num_cache_slots: int
    work: WorkShape
    modes: tuple[Mode, ...] = ()
    source: str = "model"


class Requests(NamedTuple):
    """The models, and the parameters of B requests, which are the same in all rounds.

    Attributes:
        target, drafters: the models.
        keys: `[B]`, one per request.
        sampling: the sampling parameters.
        max_lengths: `i32[B]`, length at which a text ends, prompt included.
        stop_tokens: `i32[B, M]`, tokens that end a text, padded with -1.
        watching: drafters that draft nothing in this round, but observe the target.
    """

    target: LanguageModel
    drafters: tuple[LanguageModel, ...]
    keys: Array
    sampling: BatchSampling
    max_lengths: Array
    stop_tokens: Array
    watching: tuple[LanguageModel, ...] = ()

    @property
    def observed_layers(self) -> tuple[int, ...]:
        """The features of the target that all drafters observe, one drafter after the other."""
        observers = (*self.drafters, *self.watching)
        return sum((drafter.observed_layers for drafter in observers), ())

    @property
    def draft_tokens(self) -> Array | None:
        """`i32[R]`, the tokens that the drafts are distributed over; None for all.

        Several drafters share a vocabulary, the whole one.
        """
        return self.drafters[0].tokens if len(self.drafters) == 1 else None


class Text(NamedTuple):
    """The texts so far.

    Attributes:
        tokens: `i32[B, T]`, prompt and emitted tokens; arbitrary from `length` on.
        length: `i32[B]`, which is also the position of the next token.
        seen: `bool[B, 1, N]`, the tokens that occur in the text, with an axis for the root of the
            tree; None without a repetition penalty.
    """

    tokens: Array
    length: Array
    seen: Array | None


class State(NamedTuple):
    """The state of a run, which every round changes.

    Attributes:
        text: the texts so far.
        is_active: `bool[B]`, requests whose text has not ended.
        has_invalid_logits: `bool[B]`, requests that ended because a model's logits were invalid.
        target_cache, drafter_caches: of the models.
        learned: :class:`gls_jax.decoding.margin.Learned` of a margin tree; None for other shapes.
        histogram: `i32[B, depth + 1]`, number of rounds in which 0, 1, ... drafts were accepted.
        draft_calls: `i32[B]`, calls of drafters that each request took part in.
        num_drafted: `i32[B]`, drafts that the target verified for each request.
        tried: `i32[B, depth]`, rounds in which a draft at each depth could be accepted, because
            those before it were and there was one.
        choice: :class:`gls_jax.decoding.choice.Choice`, if the drafts are chosen in every round.
        watching_caches: of the drafters that only observe.
        match: :class:`gls_jax.decoding.lookup.Match`, within a round that looks drafts up.
    """

    text: Text
    is_active: Array
    has_invalid_logits: Array
    target_cache: Any
    drafter_caches: Caches
    learned: Any
    histogram: Array
    draft_calls: Array
    num_drafted: Array
    tried: Array
    choice: Any = None
    watching_caches: Caches = ()
    match: Any = None


class Drafts(NamedTuple):
    """The drafts of a round.

    Attributes:
        tree: :class:`gls_jax.schemes.Tree` with leaves `[B, n]`.
        log_p: `f32[B, n, N]`, the distribution that each node was drawn from, `[B, n, R]` over the
            tokens of a reduced head; None where the scheme does not read it.
        cache_slots: `i32[B, n]`, slot of each node in the cache of a single drafter; -1 where the
            drafter has not read the node.
        is_invalid: `bool[B, depth]`, whether a drafter's logits were invalid, by depth.
        num_calls: `i32[B]` or an int, calls of drafters that made the drafts of each request.
        list_nodes: `i32[B, E]`, of a dynamic tree, the tree node at which each list of candidates
            was made: -1 for the root, -2 for a candidate that is not in the tree.
        candidates: of a dynamic tree, its :class:`gls_jax.decoding.dynamic_tree.Candidates`.
    """

    tree: Tree
    log_p: Array | None
    cache_slots: Array
    is_invalid: Array
    num_calls: Array | int
    list_nodes: Array | None = None
    candidates: Any = None
