"""A tiny checkpoint with a tokenizer of bytes: whatever it says, tokens end inside characters."""

import json

import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from gls_jax.models import tokenizer as tokenizers
from tests.models import tiny_checkpoint

MARKS = ["<|end|>", "<|turn|>"]
WORDS = [*sorted(ByteLevel.alphabet()), *MARKS]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|turn|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def write(folder, *, words=WORDS, template=TEMPLATE, broken="", **changes):
    """A checkpoint folder; no words, no tokenizer; NaN at the broken words."""
    fields = (
        tiny_checkpoint.FIELDS
        | {"vocab_size": 260, "num_hidden_layers": 2, "eos_token_id": 256}
        | changes
    )
    tensors = tiny_checkpoint.random_tensors(fields)
    tensors["model.embed_tokens.weight"][[words.index(word) for word in broken]] = np.nan
    tiny_checkpoint.write_folder(folder, fields, tensors)
    if words:
        kinds = [3 if word in MARKS else 1 for word in words]
        metadata = {"model": "gpt2", "pre": "gpt-2", "tokens": words, "token_type": kinds}
        built = tokenizers.from_gguf(
            {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
        )
        built.save(str(folder / "tokenizer.json"))
    if template:
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"chat_template": template, "eos_token": "<|end|>"})
        )
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of the tiny checkpoint."""
    return write(tmp_path_factory.mktemp("cli") / "tiny", max_position_embeddings=128)
