"""What is asked of `gls-jax generate`: prompts of the command line or of a file, one JSON object a
line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from gls_jax.models import ChatTemplate

__all__ = ["Request", "check_seed", "encode", "from_prompts", "read"]

Messages = tuple[dict[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Request:
    """One text that is wanted.

    Attributes:
        number: place among the requests, or the line in the file, from 0.
        prompt: text, or the messages of a chat.
        max_new_tokens: most tokens of the reply.
        temperature: of the target.
        seed: its own, or None: the common one, folded with `number`.
        where: what to call it in an error.
    """

    number: int
    prompt: str | Messages
    max_new_tokens: int
    temperature: float
    seed: int | None
    where: str

    def __post_init__(self) -> None:
        from gls_jax import checks, decoding

        try:
            if not self.prompt:
                raise ValueError("expected a prompt, got an empty one")
            _check_text(self.prompt)
            checks.count(self.max_new_tokens, "max_new_tokens")
            decoding.check_sampling(self.temperature)
            if self.seed is not None:
                check_seed(self.seed)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from None


def from_prompts(prompts: Iterable[str], **common: Any) -> list[Request]:
    """Requests of the command line."""
    return [
        Request(i, prompt, seed=None, where=f"prompt {i + 1}", **common)
        for i, prompt in enumerate(prompts)
    ]


def read(path: Path, **common: Any) -> list[Request]:
    """Requests of a file; a line's own `max_new_tokens`, `temperature` and `seed` go before the
    common ones.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no text, has no requests, or a line is none; the error names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a UTF-8 text file, got other bytes") from None
    requests = [
        _line(line, i, f"{path}, line {i + 1}", common)
        for i, line in enumerate(lines)
        if line.strip()
    ]
    if not requests:
        raise ValueError(f"{path}: expected a JSON object a line, got an empty file")
    return requests


def encode(
    request: Request, tokenizer: Tokenizer, template: ChatTemplate | None, system: str | None
) -> list[int]:
    """The tokens of a prompt.

    Args:
        request: with the prompt.
        tokenizer: of the target.
        template: the chat template; None completes the bare text.
        system: what a chat begins with where it does not say so itself.
    """
    if template is None:
        if not isinstance(request.prompt, str):
            raise ValueError(
                f"{request.where}: expected a prompt for a model without a chat template, got messages"
            )
        tokens = tokenizer.encode(request.prompt).ids
    else:
        text = request.prompt
        messages = ({"role": "user", "content": text},) if isinstance(text, str) else text
        if system is not None and messages[0]["role"] != "system":
            messages = ({"role": "system", "content": system}, *messages)
        try:
            # The template has written the first token where there is to be one.
            tokens = tokenizer.encode(template.render(messages), add_special_tokens=False).ids
        except ValueError as error:
            raise ValueError(f"{request.where}: {error}") from None
    if not tokens:
        raise ValueError(f"{request.where}: expected a prompt of at least one token, got none")
    return tokens


def check_seed(seed: int) -> None:
    """Raise `ValueError` for what is no seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected an int within 0..2^32 - 1, got {seed!r}")


def _check_text(prompt: str | Messages) -> None:
    try:
        json.dumps(prompt, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("expected text, got half a character") from None


def _line(line: str, number: int, where: str, common: dict[str, Any]) -> Request:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected a JSON object, got something else ({error})") from None
    if not isinstance(fields, dict) or ("prompt" in fields) == ("messages" in fields):
        raise ValueError(
            f"{where}: expected a JSON object with either prompt or messages, got {line.strip()[:60]}"
        )
    prompt = fields.get("prompt", "")
    if not isinstance(prompt, str):
        raise ValueError(f"{where}: prompt: expected text, got {type(prompt).__name__}")
    if "messages" in fields:
        prompt = _messages(fields["messages"], where)
    own = {name: fields[name] for name in common if fields.get(name) is not None}
    return Request(number, prompt, seed=fields.get("seed"), where=where, **(common | own))


def _messages(value: Any, where: str) -> Messages:
    if not isinstance(value, list) or not all(
        isinstance(each, dict) and "role" in each for each in value
    ):
        raise ValueError(
            f"{where}: messages: expected a list of objects with role and content, got something else"
        )
    return tuple(value)
