"""Adapter of a language model for decoding: parameters, two pure functions, vocabulary size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
from jax import Array

from gls_jax import checks
from gls_jax.decoding import cache as caches

__all__ = ["AnyModel", "HasLanguageModel", "LanguageModel"]


class HasLanguageModel(Protocol):
    """An object with a language model, such as a loaded checkpoint."""

    @property
    def language_model(self) -> LanguageModel:
        """The model."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A causal language model as pure functions.

    **Cache protocol.** ``init_cache(batch, length)`` returns a NamedTuple or dataclass with a
    field `length`, `i32[B]`: the number of filled slots in each row. `apply` writes its T tokens
    into the slots ``length .. length + T - 1``, whatever their positions, and adds T to `length`.
    A token attends to those slots named by the mask which are filled or written in this call.
    Slots from `length` on are never read, so a smaller `length` discards the newest tokens.
    All other leaves are `[layers, B, S, ...]`, so that accepted drafts can be moved into place. A
    property `slot_axes` gives the axis of the slots of fields where it is not 2; any other layout
    needs another `keep`.

    Attributes:
        params: pytree of weights.
        apply: ``(params, tokens i32[B, T], positions i32[B, T], mask bool[B, T, S] or None,
            cache)`` to ``(logits f[B, T, V], cache)``. Mask None is causal: each token sees all
            filled slots, and the new tokens up to itself. Logits are those of the next token. A
            static argument of `jax.jit`: keep it one object, or hashable, so that nothing compiles
            twice.
        init_cache: ``(batch, length)`` to a cache with `length` empty slots a row; static likewise.
        vocab_size: `V`.
        keep: how accepted drafts are moved, see :func:`gls_jax.decoding.cache.keep`.
        vocabulary: hash of the tokenizer, None if unknown. A drafter and a target with different
            hashes are refused.
        hidden: `apply` without the output head, ``(params, tokens, positions, mask, cache, layers)
            -> (hidden f[B, T, M], features f[B, T, W], cache)``; None if the model has only
            `apply`, which is not called otherwise. `layers` is static and says which features are
            needed, empty for none.
        head: the output head, ``(params, hidden f[B, C, M]) -> logits f[B, C, V]``; given with
            `hidden`. Logits are then computed only for the tokens that need them.
        observe: of a drafter that uses the target's features, ``(params, cache, features
            f[B, T, W], start i32[B], end i32[B]) -> cache``: takes up the features of the tokens in
            the slots from `start` on. Those before `end` are features of the text.
        observed_layers: what the drafter gives the target as `layers`.
        tokens: `i32[R]`, of a drafter with a reduced output head: the token of each logit,
            increasing. All other tokens have probability 0. None if the logits are of all tokens.
    """

    params: Any
    apply: Callable[[Any, Array, Array, Array | None, Any], tuple[Array, Any]] = dataclasses.field(
        metadata={"static": True}
    )
    init_cache: Callable[[int, int], Any] = dataclasses.field(metadata={"static": True})
    vocab_size: int = dataclasses.field(metadata={"static": True})
    keep: Callable[[Any, Array, Array, Array], Any] = dataclasses.field(
        default=caches.keep, metadata={"static": True}
    )
    vocabulary: str | None = dataclasses.field(default=None, metadata={"static": True})
    hidden: Callable[..., tuple[Array, Array, Any]] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    head: Callable[[Any, Array], Array] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    observe: Callable[[Any, Any, Array, Array, Array], Any] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    observed_layers: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    tokens: Array | None = None

    def __post_init__(self) -> None:
        optional = [name for name in ("hidden", "head", "observe") if getattr(self, name)]
        for name in ("apply", "init_cache", "keep", *optional):
            function = getattr(self, name)
            if not callable(function):
                raise ValueError(f"LanguageModel.{name}: expected a function, got {function!r}")
        checks.count(self.vocab_size, "LanguageModel.vocab_size")
        if (self.hidden is None) != (self.head is None):
            raise ValueError("LanguageModel: expected both hidden and head, or neither, got one")


AnyModel: TypeAlias = LanguageModel | HasLanguageModel
