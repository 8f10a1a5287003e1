"""Options of decoding in one record: scheme, drafts, sampling parameters, and where texts end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gls_jax.decoding.tree_shape import DynamicTree
from gls_jax.schemes import Scheme
from gls_jax.typing import Numbers

__all__ = ["DecodeOptions"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DecodeOptions:
    """Options of :func:`gls_jax.decoding.generate` and :func:`gls_jax.decoding.stream`.

    They are checked by the call that uses them, which knows the models and the batch.

    Attributes:
        scheme: name or :class:`gls_jax.schemes.Scheme`.
        num_drafts: K, the number of chains.
        draft_length: L, the length of each chain.
        tree: numbers of children at each depth of a static tree, a :class:`MarginTree`, or a
            :class:`BestFirstTree`; replaces the K chains of length L.
        max_new_tokens: one number, or one per request.
        temperature: of the target, 0 for greedy; one number, or one per request.
        draft_temperatures: one number, or one per chain; None takes the target's. `topk`, whose
            drafts are not samples, takes 1 where the target's is 0.
        top_k: how many of the largest logits are kept, the same for all requests; None keeps all.
        top_p, min_p, repetition_penalty: one number, or one per request; see
            :func:`gls_jax.decoding.log_probs`.
        stop_tokens: token ids that end a text, or B sequences of them.
        max_length: longest text, prompt included: the model's context window; None sets no limit.

    >>> from gls_jax import decoding
    >>> decoding.DecodeOptions(scheme="gls", num_drafts=4).draft_length
    4
    """

    scheme: str | Scheme = "gumbel_topk"
    num_drafts: int = 1
    draft_length: int = 4
    tree: Sequence[int] | DynamicTree | None = None
    max_new_tokens: Numbers = 64
    temperature: Numbers = 1.0
    draft_temperatures: Numbers | None = None
    top_k: int | None = None
    top_p: Numbers | None = None
    min_p: Numbers | None = None
    repetition_penalty: Numbers | None = None
    stop_tokens: Numbers | None = ()
    max_length: int | None = None
