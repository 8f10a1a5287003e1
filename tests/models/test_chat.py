"""Chat templates: where they are found, what they may do, and which token ends a turn."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers import models as kinds
from tokenizers.pre_tokenizers import ByteLevel

from gls_jax import models
from gls_jax.models import ChatTemplate

USER = [{"role": "user", "content": "Hi"}]
TURNS = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|turn|>\n{% endfor %}{{ '>' if add_generation_prompt }}"


def byte_tokenizer(*special):
    vocabulary = {byte: i for i, byte in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(kinds.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    return tokenizer


def test_smollm2(smollm2):
    template = models.chat_template("smollm2")
    text = template.render(USER)
    assert text.startswith("<|im_start|>system\nYou are")
    assert text.endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
    assert template.end_of_turn(smollm2.tokenizer) in smollm2.config.eos_token_ids


def test_a_folder_has_it_in_one_of_three_places(tmp_path):
    assert models.chat_template(tmp_path) is None
    config = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "pad_token": None,
        "add_bos_token": True,
    }
    several = [
        {"name": "tool_use", "template": "no"},
        {"name": "default", "template": "two{{ eos_token }}"},
    ]
    for value, expected in (("{{ bos_token }}one", "<s>one"), (several, "two</s>")):
        fields = config | {"chat_template": value}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
        assert models.chat_template(tmp_path).render(USER) == expected
    (tmp_path / "chat_template.jinja").write_text("three{{ pad_token }}")
    assert models.chat_template(tmp_path).render(USER) == "three"
    (tmp_path / "tokenizer_config.json").unlink()
    assert models.chat_template(tmp_path).render(USER) == "three"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"chat_template": 3}', '{"chat_template": [{"name": "default"}]}']
)
def test_a_broken_configuration_is_one_line(tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: ") as caught:
        models.chat_template(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_template_file_of_other_bytes_is_named(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"chat_template\.jinja: expected a UTF-8 text file"):
        models.chat_template(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "Expected an expression"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[1].content }}", "has no element 1"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
        ("{% for i in range(10000000) %}{% endfor %}", "Range too big"),
    ],
)
def test_a_template_that_fails_is_one_line(source, message):
    """Some of them are attacks, which the sandbox stops."""
    with pytest.raises(ValueError, match=message) as caught:
        ChatTemplate(source, origin="tiny").render(USER)
    assert str(caught.value).startswith("tiny: ") and "\n" not in str(caught.value)


def test_the_token_after_a_reply_ends_a_turn():
    tokenizer = byte_tokenizer("<|turn|>", "</s>")
    assert ChatTemplate(TURNS).end_of_turn(tokenizer) == 256
    by_role = ChatTemplate(TURNS.replace("<|turn|>", "{{ eos_token }}"), {"eos_token": "</s>"})
    assert by_role.end_of_turn(tokenizer) == 257
    assert ChatTemplate(TURNS.replace("<|turn|>", "")).end_of_turn(tokenizer) is None
    assert ChatTemplate(TURNS.replace("<|turn|>", "!")).end_of_turn(tokenizer) is None
    assert ChatTemplate("{{ raise_exception('no') }}").end_of_turn(tokenizer) is None
