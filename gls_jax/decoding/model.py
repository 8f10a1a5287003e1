"""What decoding knows of a model: parameters, two pure functions and the size of the vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
from jax import Array

from gls_jax import checks
from gls_jax.decoding import cache as caches

__all__ = ["HasLanguageModel", "LanguageModel"]


class HasLanguageModel(Protocol):
    """What brings a language model, as a loaded checkpoint does."""

    @property
    def language_model(self) -> LanguageModel:
        """The model."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A causal language model as a bundle of pure functions.

    **Cache protocol.** ``init_cache(batch, length)`` is a NamedTuple or dataclass with a field
    `length`, `i32[B]`: the slots filled in each row. `apply` writes its T tokens into slots
    ``length .. length + T - 1``, whatever their positions, and adds T to `length`. A token sees the
    slots that the mask names among those filled and those written now; what lies behind `length` is
    never seen, so lowering `length` forgets. All other leaves are `[layers, B, S, ...]`, so that
    accepted drafts can be moved into place; a cache laid out otherwise comes with a `keep` of its
    own.

    Attributes:
        params: pytree of weights.
        apply: ``(params, tokens i32[B, T], positions i32[B, T], mask bool[B, T, S] or None,
            cache)`` to ``(logits f[B, T, V], cache)``. None is causal: all filled slots, and the
            tokens up to one's own. Logits are those of the next token. A static argument of
            `jax.jit`: keep it one object, or hashable, so that nothing compiles twice.
        init_cache: ``(batch, length) -> cache`` of `length` empty slots a row; static likewise.
        vocab_size: `V`.
        keep: how accepted drafts are moved, :func:`gls_jax.decoding.cache.keep`.
        vocabulary: fingerprint of the tokenizer, None where unknown; models with different ones do
            not go together.
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

    def __post_init__(self) -> None:
        for name in ("apply", "init_cache", "keep"):
            if not callable(getattr(self, name)):
                raise ValueError(
                    f"LanguageModel.{name}: expected a function, got {getattr(self, name)!r}"
                )
        checks.count(self.vocab_size, "LanguageModel.vocab_size")
