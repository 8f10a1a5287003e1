"""Requests for texts, from prompts or from a file, and how they become tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gls_jax import checks
from gls_jax.decoding.sampling_parameters import check_sampling
from gls_jax.runs import files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from gls_jax.models import ChatTemplate

__all__ = [
    "TextOptions",
    "TextRequest",
    "encode_prompt",
    "read_requests",
    "request_hash",
    "requests_from_prompts",
]

Messages: TypeAlias = tuple[dict[str, Any], ...]
"""Messages of a chat, each with `role` and `content`."""


@dataclasses.dataclass(frozen=True)
class TextRequest:
    """A request for one text.

    Attributes:
        number: index among the requests, or of the line in the file, from 0.
        prompt: text, or the messages of a chat.
        max_new_tokens: longest reply, in tokens.
        temperature: temperature of the target.
        seed: seed of this request; None uses the common seed, folded with `number`.
        where: what errors call the request, such as "prompt 1".

    Raises:
        ValueError: an empty prompt, text that is not Unicode, or a number out of range.

    >>> from gls_jax.decoding import requests
    >>> requests.TextRequest(0, "Hello", 8, 1.0, None, "prompt 1").max_new_tokens
    8
    """

    number: int
    prompt: str | Messages
    max_new_tokens: int
    temperature: float
    seed: int | None
    where: str

    def __post_init__(self) -> None:
        try:
            if not self.prompt:
                raise ValueError("expected a prompt, got an empty one")
            _check_unicode(self.prompt)
            checks.count(self.max_new_tokens, "max_new_tokens")
            check_sampling(self.temperature)
            if self.seed is not None:
                checks.seed(self.seed)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Options for turning prompts into tokens and for ending replies.

    The descriptions of the fields are also the help of the command line.

    >>> from gls_jax.decoding import requests
    >>> requests.TextOptions(stop=("User:",)).check()
    """

    seed: int = 0
    """Seed of all requests that have none, folded with their number."""
    chat: bool = True
    """Whether prompts go through the model's chat template, if it has one."""
    system: str | None = None
    """System message of chats that have none."""
    stop: tuple[str, ...] = ()
    """Texts or token ids that end a reply, in addition to the model's stop tokens."""

    def check(self) -> None:
        """Raise `ValueError` for a seed out of range or options that contradict each other."""
        checks.seed(self.seed)
        if self.system is not None and not self.chat:
            raise ValueError("system: expected a chat for a system message, got chat=False")
        if "" in self.stop:
            raise ValueError("stop: expected texts or token ids, got an empty text")


def requests_from_prompts(
    prompts: Iterable[str], *, max_new_tokens: int, temperature: float
) -> list[TextRequest]:
    """Requests for continuations of some prompts, or for replies to them.

    Args:
        prompts: one text for each request.
        max_new_tokens, temperature: the same for all requests.

    >>> from gls_jax.decoding import requests
    >>> limits = dict(max_new_tokens=8, temperature=1.0)
    >>> [request.where for request in requests.requests_from_prompts(["a", "b"], **limits)]
    ['prompt 1', 'prompt 2']
    """
    return [
        TextRequest(number, prompt, max_new_tokens, temperature, None, f"prompt {number + 1}")
        for number, prompt in enumerate(prompts)
    ]


def read_requests(path: Path, *, max_new_tokens: int, temperature: float) -> list[TextRequest]:
    """Read requests from a file with one JSON object per line; blank lines are skipped.

    An object has `prompt`, `messages`, or `turns`, the turns of a user, of which the first is
    answered (MT-bench); and optionally `max_new_tokens`, `temperature` and `seed`.

    Args:
        path: the file.
        max_new_tokens, temperature: defaults for lines that have none.

    Raises:
        OSError: the file cannot be read.
        ValueError: not UTF-8, no request, or a line that is not a request; the error names it.
    """
    defaults = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    requests = []
    # Not `splitlines`, which also splits at characters that JSON strings may contain.
    for number, line in enumerate(files.read_text(path).split("\n")):
        if line.strip():
            where = f"{path}, line {number + 1}"
            requests.append(_parse_line(line, number, where, defaults))
    if not requests:
        raise ValueError(f"{path}: expected a JSON object per line, got an empty file")
    return requests


def encode_prompt(
    request: TextRequest, tokenizer: Tokenizer, template: ChatTemplate | None, system: str | None
) -> list[int]:
    """Tokens of a prompt.

    Args:
        request: the request with the prompt.
        tokenizer: tokenizer of the target.
        template: chat template of the target; None continues the bare text.
        system: system message for chats without one; None adds none.

    Raises:
        ValueError: messages without a template, messages that the template refuses, or a prompt of
            no token.
    """
    prompt = request.prompt
    if template is None:
        if not isinstance(prompt, str):
            raise ValueError(
                f"{request.where}: expected a prompt for a model without a chat template, "
                "got messages"
            )
        tokens = tokenizer.encode(prompt).ids
    else:
        messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        if system is not None and messages[0]["role"] != "system":
            messages = ({"role": "system", "content": system}, *messages)
        try:
            text = template.render(messages)
            # The template itself writes the special token at the beginning, if there is one.
            tokens = tokenizer.encode(text, add_special_tokens=False).ids
        except ValueError as error:
            raise ValueError(f"{request.where}: {error}") from None
    if not tokens:
        raise ValueError(f"{request.where}: expected a prompt of at least one token, got none")
    return tokens


def request_hash(request: TextRequest, configuration: Mapping[str, Any], seed: int) -> str:
    """Hash of all that the result of a request depends on.

    Args:
        request: the request.
        configuration: names of the models and common options, as JSON.
        seed: common seed.
    """
    fields = dataclasses.asdict(request)
    # The name of the file may change between runs.
    del fields["where"]
    if request.seed is None:
        # The key is the common one folded with the number of the request.
        fields["seed"] = [seed, request.number]
    text = json.dumps([dict(configuration), fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_unicode(prompt: str | Messages) -> None:
    # JSON can write half of a surrogate pair, which no tokenizer accepts.
    try:
        json.dumps(prompt, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("expected text, got half a character") from None


def _parse_line(line: str, number: int, where: str, defaults: dict[str, Any]) -> TextRequest:
    try:
        fields = json.loads(line)
    # Deeply nested brackets exhaust the stack of the parser.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected a JSON object, got something else ({error})") from None
    names = ("prompt", "messages", "turns")
    if not isinstance(fields, dict) or sum(name in fields for name in names) != 1:
        raise ValueError(
            f"{where}: expected a JSON object with either prompt or messages or turns, "
            f"got {line.strip()[:60]}"
        )
    prompt: str | Messages
    if "messages" in fields:
        prompt = _parse_messages(fields["messages"], where)
    elif "turns" in fields:
        turns = fields["turns"]
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
            raise ValueError(f"{where}: turns: expected a list of texts, got something else")
        prompt = turns[0]
    else:
        prompt = fields["prompt"]
        if not isinstance(prompt, str):
            raise ValueError(f"{where}: prompt: expected text, got {type(prompt).__name__}")
    # A field of null means the default, as a missing one does.
    options = {name: fields[name] for name in defaults if fields.get(name) is not None}
    return TextRequest(
        number=number, prompt=prompt, seed=fields.get("seed"), where=where, **(defaults | options)
    )


def _parse_messages(messages: Any, where: str) -> Messages:
    is_list = isinstance(messages, list)
    if not is_list or not all(isinstance(item, dict) and "role" in item for item in messages):
        raise ValueError(
            f"{where}: messages: expected a list of objects with role and content, "
            "got something else"
        )
    return tuple(messages)
