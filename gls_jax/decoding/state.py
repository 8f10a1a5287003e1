"""Records of a run: what is fixed before tracing, what stays the same, and what a round changes."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeAlias

from jax import Array

from gls_jax.decoding.batch_sampling import BatchSampling
from gls_jax.decoding.model import LanguageModel
from gls_jax.decoding.tree_shape import Shape
from gls_jax.schemes import Scheme, Tree

__all__ = ["Caches", "Drafts", "Plan", "Requests", "State", "Text"]

Caches: TypeAlias = tuple[Any, ...]
"""The caches of the drafters."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed before tracing; a static argument of the compiled functions.

    Attributes:
        scheme: proposes and verifies.
        shape: what is drafted.
        chains: the chains that each drafter makes; a single drafter makes all.
        num_cache_slots: `S`, slots in each row of the caches.
    """

    scheme: Scheme
    shape: Shape
    chains: tuple[tuple[int, ...], ...]
    num_cache_slots: int


class Requests(NamedTuple):
    """The models, and what stays the same for B requests from round to round.

    Attributes:
        target, drafters: the models.
        keys: `[B]`, one per request.
        sampling: the sampling parameters.
        max_lengths: `i32[B]`, length at which a text ends, prompt included.
        stop_tokens: `i32[B, M]`, tokens that end a text, padded with -1.
    """

    target: LanguageModel
    drafters: tuple[LanguageModel, ...]
    keys: Array
    sampling: BatchSampling
    max_lengths: Array
    stop_tokens: Array


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
    """What a round changes; `Requests` holds what it does not.

    Attributes:
        text: the texts so far.
        is_active: `bool[B]`, requests whose text has not ended.
        has_invalid_logits: `bool[B]`, requests that ended because a model's logits were invalid.
        target_cache, drafter_caches: of the models.
        spread_fit: what a margin tree has learned, see :mod:`gls_jax.decoding.margin`; else None.
        histogram: `i32[B, depth + 1]`, in how many rounds 0, 1, ... drafts were accepted.
    """

    text: Text
    is_active: Array
    has_invalid_logits: Array
    target_cache: Any
    drafter_caches: Caches
    spread_fit: Array | None
    histogram: Array


class Drafts(NamedTuple):
    """The drafts of one round.

    Attributes:
        tree: :class:`gls_jax.schemes.Tree` with leaves `[B, n]`.
        log_p: `f32[B, n, N]`, the distribution that each node was drawn from; None where the scheme
            does not read it.
        cache_slots: `i32[B, n]`, slot of each node in the cache of a single drafter; -1 where the
            drafter has not read the node.
        is_invalid: `bool[B, depth]`, whether a drafter's logits were invalid, by depth.
        candidates: what a margin tree learns from, see :mod:`gls_jax.decoding.margin`; else None.
    """

    tree: Tree
    log_p: Array | None
    cache_slots: Array
    is_invalid: Array
    candidates: Any = None
