"""Chat templates: the Jinja program of a checkpoint that turns messages into a prompt's text.

Rendered as `transformers` does, in a sandbox, because the program comes from a stranger.
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
from gls_jax.models import gguf_file, model_location
from gls_jax.runs import files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ChatTemplate", "chat_template"]

# A placeholder reply: the template shows how it ends a turn by what it writes after this text.
_REPLY = "gls-jax"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template and the special tokens that it may name.

    A rendered prompt contains its special tokens, the first one included: encode it with
    ``add_special_tokens=False``.

    Attributes:
        source: the Jinja program.
        special_tokens: text of each special token by its role, such as `bos_token`.
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
            messages: mappings with `role` and `content`.
            add_generation_prompt: whether the prompt ends with the beginning of a reply.

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
            raise ValueError(
                f"{self.origin}: the chat template refuses the messages ({files.one_line(error)})"
            ) from error

    def end_of_turn(self, tokenizer: Tokenizer) -> int | None:
        """The special token that the template writes after a reply, None if there is none.

        A model that ends its turn emits it.
        """
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _REPLY}]
        try:
            text = self.render(turn, add_generation_prompt=False)
        except ValueError:
            # A template that needs more than these messages can still render prompts.
            return None
        text_after_reply = text.rpartition(_REPLY)[2].strip()
        tokens = tokenizer.encode(text_after_reply, add_special_tokens=False).ids
        if tokens and tokens[0] in tokenizer.get_added_tokens_decoder():
            return tokens[0]
        return None


def chat_template(path_or_name: str | Path) -> ChatTemplate | None:
    """The chat template of a checkpoint, None if it has none.

    Args:
        path_or_name: as for :func:`gls_jax.models.load`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read.

    >>> from gls_jax import models
    >>> models.chat_template("smollm2").render([{"role": "user", "content": "Hi"}])[-52:]
    '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n'
    """
    path = model_location.find_model(path_or_name)
    return _from_folder(path) if path.is_dir() else _from_gguf(path)


def _from_folder(folder: Path) -> ChatTemplate | None:
    config_path = folder / "tokenizer_config.json"
    template_path = folder / "chat_template.jinja"
    fields: dict[str, Any] = {}
    if config_path.is_file():
        fields = files.read_json(config_path, "the configuration of a tokenizer")
    # Newer checkpoints have the template in a file, which wins over the field.
    template = files.read_text(template_path) if template_path.is_file() else None
    try:
        source = fields.get("chat_template") if template is None else template
        # Some have several templates; `default` is the one without tools.
        if isinstance(source, list):
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        special_tokens = {}
        for name, value in fields.items():
            token_text = _token_text(value)
            if name.endswith("_token") and token_text:
                special_tokens[name] = token_text
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{config_path}: expected the configuration of a tokenizer, "
            f"got something else ({error})"
        ) from error
    if source is None:
        return None
    if not isinstance(source, str):
        raise ValueError(
            f"{config_path}: chat_template: expected text, got {type(source).__name__}"
        )
    return ChatTemplate(source, special_tokens, origin=str(folder))


def _from_gguf(path: Path) -> ChatTemplate | None:
    metadata = gguf_file.open_file(path).metadata
    source = metadata.get("tokenizer.chat_template")
    if not source:
        return None
    vocabulary = metadata.get("tokenizer.ggml.tokens", [])
    special_tokens = {}
    for name in ("bos_token", "eos_token"):
        token_id = metadata.get(f"tokenizer.ggml.{name}_id")
        if token_id is not None and 0 <= token_id < len(vocabulary):
            special_tokens[name] = vocabulary[token_id]
    return ChatTemplate(source, special_tokens, origin=str(path))


def _token_text(value: Any) -> str | None:
    """Text of a special token, which is a text or an object with its `content`."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


@cache
def _environment():
    """Jinja as `transformers` sets it up, with the filter and functions that templates may call."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Templates for training mark replies with ``{% generation %}``, which is ignored here."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            # The tag itself; what it encloses is kept.
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # Instead of Jinja's filter, which escapes HTML.
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
