"""Chat templates: from messages to the text of a prompt, by the Jinja program that comes with a
checkpoint.

Rendered as `transformers` does, in a sandbox: the program is a stranger's.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gls_jax import extras
from gls_jax.models import gguf_file, packages

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ChatTemplate", "chat_template"]

_REPLY = "gls-jax"  # a reply to look behind


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template and the special tokens that it may name.

    A rendered prompt holds its special tokens, the first one included: encode it with
        ``add_special_tokens=False``.

    Attributes:
        source: the Jinja program.
        special_tokens: text of each by its role, such as `bos_token`.
        origin: the file, for errors.

    >>> from gls_jax.models import ChatTemplate
    >>> template = ChatTemplate(
    ...     "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ eos_token }}"
    ... )
    >>> template.render([{"role": "user", "content": "Hello"}])
    '[user]Hello'
    """

    source: str
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    origin: str = "chat template"

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The prompt.

        Args:
            messages: each a mapping with `role` and `content`.
            add_generation_prompt: whether it ends with the beginning of a reply.

        Raises:
            ValueError: a broken template, or one that refuses these messages.
            ModuleNotFoundError: the package `jinja2` is missing.
        """
        jinja2 = extras.module("jinja2", "lm")
        try:
            program = _environment().from_string(self.source)
            return program.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{self.origin}: the chat template refuses the messages ({reason})"
            ) from error

    def end_of_turn(self, tokenizer: Tokenizer) -> int | None:
        """The special token that the template writes behind a reply: a model that ends its turn
        says it.
        """
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _REPLY}]
        try:
            behind = self.render(turn, add_generation_prompt=False).rpartition(_REPLY)[2].strip()
        except ValueError:
            return None  # a template that asks for more than these messages still serves prompts
        first = tokenizer.encode(behind, add_special_tokens=False).ids[:1]
        return first[0] if first and first[0] in tokenizer.get_added_tokens_decoder() else None


def chat_template(path_or_name: str | Path) -> ChatTemplate | None:
    """The chat template of a checkpoint, None where it has none.

    Args:
        path_or_name: as of :func:`gls_jax.models.load`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read.

    >>> from gls_jax import models
    >>> models.chat_template("smollm2").render([{"role": "user", "content": "Hi"}])[-52:]
    '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n'
    """
    path = packages.smollm2() if path_or_name == "smollm2" else Path(path_or_name)
    return _from_folder(path) if path.is_dir() else _from_gguf(path)


def _from_folder(folder: Path) -> ChatTemplate | None:
    path = folder / "tokenizer_config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        own = folder / "chat_template.jinja"  # wins over the field, which is its older place
        source = own.read_text(encoding="utf-8") if own.is_file() else fields.get("chat_template")
        if isinstance(source, list):
            source = {each["name"]: each["template"] for each in source}.get("default")
        tokens = {
            name: _text(value)
            for name, value in fields.items()
            if name.endswith("_token") and _text(value)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected the configuration of a tokenizer, got something else ({error})"
        ) from error
    if source is not None and not isinstance(source, str):
        raise ValueError(f"{path}: chat_template: expected text, got {type(source).__name__}")
    return None if source is None else ChatTemplate(source, tokens, str(folder))


def _from_gguf(path: Path) -> ChatTemplate | None:
    metadata = gguf_file.open_file(path).metadata
    source, vocabulary = (
        metadata.get("tokenizer.chat_template"),
        metadata.get("tokenizer.ggml.tokens", []),
    )
    if not source:
        return None
    numbers = {
        name: metadata.get(f"tokenizer.ggml.{name}_id") for name in ("bos_token", "eos_token")
    }
    tokens = {
        name: vocabulary[i]
        for name, i in numbers.items()
        if i is not None and 0 <= i < len(vocabulary)
    }
    return ChatTemplate(source, tokens, str(path))


def _text(value: Any) -> Any:
    """A special token stands as text or as an object with its content."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


@cache
def _environment():
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Templates for training mark replies with ``{% generation %}``; here the mark says
        nothing.
        """

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # Jinja's own filter escapes HTML.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment
