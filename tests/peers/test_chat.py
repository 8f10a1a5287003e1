"""Chat templates against transformers, text and token ids."""

import os

# Before transformers is imported: nothing is ever downloaded.
os.environ["HF_HUB_OFFLINE"] = "1"

import json

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, processors
from tokenizers import models as kinds
from tokenizers.pre_tokenizers import ByteLevel

from gls_jax import models
from gls_jax.models import model_location

pytestmark = [
    pytest.mark.peer,
    # Warnings of the peers about themselves are not ours to fix.
    pytest.mark.filterwarnings(
        "default::DeprecationWarning", "default::FutureWarning", "default::UserWarning"
    ),
]

CHATS = {
    "one": [{"role": "user", "content": "What is 2 + 2?"}],
    "system": [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": "naïve 你好 🙂 <b>&'\"</b>"},
    ],
    "turns": [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "Hello!",
            "tool_calls": [{"name": "f", "arguments": {"é": [1, None, "<x>"]}}],
        },
        {"role": "user", "content": ""},
    ],
}
# In the manner of ChatML, Llama 2 and Llama 3: white space around blocks, filters, namespaces, loop
# controls, dates.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}\n    {%- if loop.first and message.role != 'system' %}\n"
        "        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}\n    {%- endif %}\n"
        "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}\n"
        "{% endfor %}\n{% if add_generation_prompt %}\n    {{ '<|im_start|>assistant\\n' }}\n{% endif %}\n"
    ),
    "llama2": (
        "{{ bos_token }}{% set ns = namespace(count=0) %}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{% continue %}{% endif %}{% set ns.count = ns.count + 1 %}"
        "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]{{ ns.count }}"
        "{% else %}{% generation %} {{ message['content'] }} {{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    ),
    "tools": (
        "{{- bos_token }}\n{%- for message in messages %}\n  {%- if message.tool_calls is defined %}\n"
        "    {%- for call in message.tool_calls %}{{ call | tojson }} {{ call.arguments | tojson(indent=2) }}"
        "{%- endfor %}\n  {%- endif %}\n{{ message.content }}{{ unk_token }}{% endfor %}"
    ),
    "dates": "{{ strftime_now('%Y') }}{{ messages | length }}{{ dict(a=1) | tojson }}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {byte: i for i, byte in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(kinds.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("place", ["field", "file"])
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
def test_folder(folder, name, chat, place):
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    config |= {"chat_template": TEMPLATES[name] if place == "field" else "not this one"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if place == "file":
        (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    compare(
        models.chat_template(folder),
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        transformers.AutoTokenizer.from_pretrained(folder),
        CHATS[chat],
    )


@pytest.mark.parametrize("chat", CHATS)
def test_gguf(chat):
    path = model_location.smollm2()
    peer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    template = models.chat_template("smollm2")
    # transformers does not read this field of a GGUF file.
    peer.chat_template = peer.chat_template or template.source
    compare(template, models.load("smollm2", layers=[0]).tokenizer, peer, CHATS[chat])


def compare(template, tokenizer, peer, messages):
    for add_prompt in (True, False):
        text = template.render(messages, add_generation_prompt=add_prompt)
        assert text == peer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_prompt
        )
        ids = peer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=add_prompt, return_dict=False
        )
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids
