"""From tokens back to text while they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Detokenizer"]

_WINDOW = 64  # tokens that are decoded again for each new one
_BEFORE = 16  # tokens of the context that can have a say: a character takes a few
_UNFINISHED = (
    "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for bytes that are no whole character
)


class Detokenizer:
    """The text of tokens that come one by one, in pieces that joined are the decoded text; special
    tokens are left out.

    A token may end inside a character, and some decoders drop a space at the beginning of what they
    are given. So every piece is what decoding gives beyond the tokens before it, and bytes that end
    inside a character wait for the rest.

    Args:
        tokenizer: the tokenizer.
        context: tokens of the text that goes on; empty for a text of its own.

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
        self._tokens = [int(token) for token in context[-_BEFORE:]]
        self._given = self._decode(self._tokens)
        self._whole = 0  # as many of the tokens end with a whole character

    def push(self, token: int) -> str:
        """The text that is certain with one token more."""
        self._tokens.append(int(token))
        text = self._decode(self._tokens)
        if text.endswith(_UNFINISHED) or not text.startswith(self._given):
            return ""  # a decoder that falls back on bytes may spoil the whole run until it is complete
        piece, self._given = text[len(self._given) :], text
        if (
            len(self._tokens) > _WINDOW
            and self._whole
            and (rest := self._decode(self._tokens[self._whole :]))
        ):
            self._tokens, self._given = self._tokens[self._whole :], rest
        self._whole = len(self._tokens)
        return piece

    def finish(self) -> str:
        """What still waits: bytes that never became a character."""
        text = self._decode(self._tokens)
        return text[len(self._given) :] if text.startswith(self._given) else ""

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens) if tokens else ""
