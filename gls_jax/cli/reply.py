"""A reply as it grows: tokens in, text out, until something ends it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gls_jax.cli.requests import Request

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray
    from tokenizers import Tokenizer

    from gls_jax.models import Detokenizer

__all__ = ["Reply", "Stops", "stops"]


class Stops(NamedTuple):
    """What ends a text.

    Attributes:
        tokens: ids.
        texts: texts, wherever they come up.
    """

    tokens: frozenset[int]
    texts: tuple[str, ...]


def stops(asked: Sequence[str], own: Iterable[int], tokenizer: Tokenizer) -> Stops:
    """Stops of the command line beside the model's own: digits are a token's id, names of special
    tokens are tokens.
    """
    tokens, texts = set(own), []
    for text in asked:
        token = int(text) if text.isdecimal() else tokenizer.token_to_id(text)
        if token is not None and (
            text.isdecimal() or token in tokenizer.get_added_tokens_decoder()
        ):
            tokens.add(token)
        else:
            texts.append(text)
    return Stops(frozenset(tokens), tuple(texts))


class Reply:
    """What has come of one request.

    Args:
        request: what was asked.
        prompt: its tokens.
        key: of its randomness.
        limit: most tokens.
        stops: what ends it.
        detokenizer: that goes on behind the prompt.

    Attributes:
        tokens: the reply's tokens, the one that ended it included.
        text: the reply, without what stopped it.
        finish_reason: `stop`, `length`, or None while it grows.
    """

    request: Request
    prompt: Sequence[int]
    key: PRNGKeyArray
    limit: int
    text: str
    stops: Stops

    def __init__(
        self,
        request: Request,
        prompt: Sequence[int],
        key: PRNGKeyArray,
        limit: int,
        stops: Stops,
        detokenizer: Detokenizer,
    ) -> None:
        self.request, self.prompt, self.key, self.limit = request, prompt, key, limit
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.stops, self._detokenizer, self._shown = stops, detokenizer, 0

    def take(self, tokens: Iterable[int]) -> str:
        """Add tokens up to the end of the reply; the text that can be shown, once all of them are
        looked at.

        A stopping text is looked for after each token, so that the end does not depend on how many
        came at once.
        """
        for token in tokens:
            if self.finish_reason is not None:
                break
            self._add(int(token))
        held = (
            0
            if self.finish_reason
            else max((_common(self.text, stop) for stop in self.stops.texts), default=0)
        )
        piece, self._shown = self.text[self._shown : len(self.text) - held], len(self.text) - held
        return piece

    def record(self, accepted: Collection[int], draft_calls: int) -> dict[str, Any]:
        """The finished reply as JSON.

        Args:
            accepted: in how many rounds 0, 1, ... drafts were accepted.
            draft_calls: calls of drafters.
        """
        return {
            "request": self.request.number,
            "text": self.text,
            "tokens": self.tokens,
            "finish_reason": self.finish_reason,
            "prompt_tokens": len(self.prompt),
            "accepted": [int(count) for count in accepted],
            "target_calls": int(sum(accepted)),
            "draft_calls": int(draft_calls),
        }

    def _add(self, token: int) -> None:
        self.tokens.append(token)
        if token in self.stops.tokens:
            self._finish("stop")
            return
        before = len(self.text)
        self.text += self._detokenizer.push(token)
        starts = [self.text.find(stop, max(0, before - len(stop) + 1)) for stop in self.stops.texts]
        if starts := [start for start in starts if start >= 0]:
            self.text, self.finish_reason = self.text[: min(starts)], "stop"
        elif len(self.tokens) == self.limit:
            self._finish("length")

    def _finish(self, reason: str) -> None:
        self.text += self._detokenizer.finish()
        self.finish_reason = reason


def _common(text: str, stop: str) -> int:
    """Characters at the end of the text that may be the beginning of a stop."""
    return next(
        (
            size
            for size in range(min(len(text), len(stop) - 1), 0, -1)
            if text.endswith(stop[:size])
        ),
        0,
    )
