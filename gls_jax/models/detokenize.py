"""Text of tokens while they are generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Detokenizer"]

# Once more tokens than this are held, those of finished pieces are dropped: every new token decodes
# all that are held.
_MAX_HELD = 64
# Earlier tokens that may matter: a character takes a few.
_MAX_CONTEXT = 16
# A decoder writes this for bytes that are not a whole character.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Text of tokens that come one by one, in pieces.

    The pieces, joined, are the decoded text without special tokens. Tokens cannot be decoded one by
    one: a token may end inside a character, and some decoders drop a space at the beginning of what
    they are given. So every piece is what decoding adds to the text of the tokens before it, and
    the bytes of an incomplete character are held back.

    Args:
        tokenizer: the tokenizer.
        context: tokens of the text that is continued; empty if there is none.

    >>> from gls_jax.models import Detokenizer
    >>> from gls_jax.models.tokenizer import from_gguf
    >>> tokenizer = from_gguf(
    ...     {
    ...         "tokenizer.ggml.model": "gpt2",
    ...         "tokenizer.ggml.pre": "gpt-2",
    ...         "tokenizer.ggml.tokens": ["Ã", "©", "Ġl"],
    ...         "tokenizer.ggml.merges": [],
    ...     }
    ... )
    >>> text = Detokenizer(tokenizer)
    >>> [text.push(token) for token in (0, 1, 2)]
    ['', 'é', ' l']
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokens = [int(token) for token in context[-_MAX_CONTEXT:]]
        self._emitted = self._decode(self._tokens)
        # How many tokens were held when the last piece was emitted.
        self._num_complete = 0

    def push(self, token: int) -> str:
        """The text that is certain after one more token."""
        self._tokens.append(int(token))
        text = self._decode(self._tokens)
        # Decoders that fall back on bytes may garble earlier bytes too until the run is complete.
        if text.endswith(_INCOMPLETE) or not text.startswith(self._emitted):
            return ""
        piece = text[len(self._emitted) :]
        self._emitted = text
        if len(self._tokens) > _MAX_HELD and self._num_complete:
            # The tokens of this piece stay: they are the context of the next one.
            held_tokens = self._tokens[self._num_complete :]
            held_text = self._decode(held_tokens)
            if held_text:
                self._tokens = held_tokens
                self._emitted = held_text
        self._num_complete = len(self._tokens)
        return piece

    def finish(self) -> str:
        """The text still held back: bytes that never became a character."""
        text = self._decode(self._tokens)
        return text[len(self._emitted) :] if text.startswith(self._emitted) else ""

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens) if tokens else ""
