"""A reply as it grows: tokens come in, text goes out, until a stop or the length limit ends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gls_jax.decoding.metrics import Metrics
from gls_jax.decoding.requests.text_requests import TextRequest

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray
    from tokenizers import Tokenizer

    from gls_jax.models import Detokenizer

__all__ = ["Reply", "StopConditions", "stop_conditions"]


class StopConditions(NamedTuple):
    """The conditions that end a reply.

    Attributes:
        tokens: token ids that end it.
        texts: texts that end it wherever they occur.
    """

    tokens: frozenset[int]
    texts: tuple[str, ...]


def stop_conditions(
    stops: Sequence[str], model_tokens: Iterable[int], tokenizer: Tokenizer
) -> StopConditions:
    """Stop conditions as a user writes them.

    Args:
        stops: a token id in digits, the name of a special token, or any other text.
        model_tokens: stop tokens of the model itself, always included.
        tokenizer: tokenizer of the model.
    """
    # The same characters may also be an ordinary token, which a text need not consist of.
    special_tokens = tokenizer.get_added_tokens_decoder()
    tokens, texts = set(model_tokens), []
    for stop in stops:
        token = tokenizer.token_to_id(stop)
        if stop.isdecimal():
            tokens.add(int(stop))
        elif token in special_tokens:
            tokens.add(token)
        else:
            texts.append(stop)
    return StopConditions(frozenset(tokens), tuple(texts))


@dataclasses.dataclass(eq=False, kw_only=True)
class Reply:
    """The reply to one request.

    Attributes:
        request: the request.
        prompt: tokens of the prompt.
        key: key of the reply's randomness.
        max_new_tokens: longest reply, in tokens, within the model's context window.
        stops: what ends the reply.
        detokenizer: turns tokens into text; it has seen the prompt if the reply continues it.
        tokens: tokens so far, including the one that ended the reply.
        text: text so far, without what stopped it.
        finish_reason: "stop", "length", or None while the reply grows.
    """

    request: TextRequest
    prompt: Sequence[int]
    key: PRNGKeyArray
    max_new_tokens: int
    stops: StopConditions
    detokenizer: Detokenizer
    tokens: list[int] = dataclasses.field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    _num_shown: int = dataclasses.field(default=0, init=False)

    def take(self, tokens: Iterable[int]) -> str:
        """Add tokens until the reply ends.

        Stop texts are looked for after each token, so the end of the reply does not depend on how
        many tokens arrive at once.

        Returns:
            The new text, without an ending that may be the beginning of a stop text.
        """
        for token in tokens:
            if self.finish_reason is not None:
                break
            self._add(int(token))
        # Text that was shown cannot be taken back when it turns out to be a stop.
        num_held = 0 if self.finish_reason is not None else self._num_held()
        end = len(self.text) - num_held
        piece = self.text[self._num_shown : end]
        self._num_shown = end
        return piece

    def record(self, metrics: Metrics, row: int) -> dict[str, Any]:
        """The finished reply as JSON.

        Args:
            metrics: of the batch.
            row: of the reply.
        """
        accepted = metrics.histogram[row]
        return {
            "request": self.request.number,
            "text": self.text,
            "tokens": self.tokens,
            "finish_reason": self.finish_reason,
            "prompt_tokens": len(self.prompt),
            "accepted": [int(count) for count in accepted],
            "target_calls": int(sum(accepted)),
            "tried": None if metrics.tried is None else metrics.tried[row].tolist(),
            "draft_calls": int(metrics.draft_calls[row]),
            "metrics": {"speculative_decoding": metrics.speculative_decoding(row)},
        }

    def _add(self, token: int) -> None:
        self.tokens.append(token)
        if token in self.stops.tokens:
            self._finish("stop")
            return
        num_before = len(self.text)
        self.text += self.detokenizer.push(token)
        starts = []
        for stop in self.stops.texts:
            # A stop text may begin in the old text, but must end in the new.
            start = self.text.find(stop, max(0, num_before - len(stop) + 1))
            if start >= 0:
                starts.append(start)
        if starts:
            self.text, self.finish_reason = self.text[: min(starts)], "stop"
        elif len(self.tokens) == self.max_new_tokens:
            self._finish("length")

    def _finish(self, reason: str) -> None:
        # Bytes that never became a character are shown as such.
        self.text += self.detokenizer.finish()
        self.finish_reason = reason

    def _num_held(self) -> int:
        """Characters at the end of the text that may be the beginning of a stop text."""
        num_held = 0
        for stop in self.stops.texts:
            for size in range(1, len(stop)):
                if self.text.endswith(stop[:size]):
                    num_held = max(num_held, size)
        return num_held
