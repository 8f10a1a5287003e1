"""Input validation of `generate`: each error says what was got, what was expected and, where it helps, what to do."""

import dataclasses

import jax
import pytest

from gls_jax import decoding
from gls_jax.decoding import BestFirstTree, MarginTree
from tests.decoding.tiny_models import KEY

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(prompts=[]), "prompts: expected integers of shape"),
        (
            dict(prompts=[[]]),
            "prompts: expected at least one token for every request, got none for request 0",
        ),
        (
            dict(prompts=[[1], [61]]),
            r"prompts: expected tokens within 0\.\.60, got 61 in request 1",
        ),
        (dict(prompts=[[1.5]]), "prompts: expected integers"),
        (dict(prompts=5), "prompts: expected token ids of B requests, got int"),
        (dict(prompt_lengths=[3]), "prompt_lengths: expected 1 ints of at most 2"),
        (dict(prompt_lengths=[0]), "prompts: expected at least one token"),
        (dict(max_length=2), r"prompts: expected fewer than max_length \(2\) tokens, got 2"),
        (dict(scheme="best"), "scheme: expected one of gls"),
        (dict(scheme="single", num_drafts=2), "num_drafts: scheme 'single' takes at most 1, got 2"),
        (dict(num_drafts=0), "num_drafts: expected an int of at least 1, got 0"),
        (dict(draft_length=0), "draft_length: expected an int of at least 1, got 0"),
        (
            dict(tree=MarginTree(4, 2)),
            "tree: expected scheme 'gumbel_topk' for a margin tree, got 'gls'",
        ),
        (
            dict(tree=BestFirstTree(4, 2), scheme="gumbel_topk"),
            "tree: expected scheme 'topk' for a best-first tree, got 'gumbel_topk'",
        ),
        (dict(tree=(10**5, 10**5)), "tree: expected at most 8192 nodes, got 10000100000"),
        (
            dict(num_drafts=10**5, draft_length=10**5),
            r"draft_length: expected num_drafts \* draft_length of at most 8192",
        ),
        (dict(tree=(2, 0)), "tree: expected an int of at least 1, got 0"),
        (dict(tree=(9, 1), scheme="block"), "num_drafts: scheme 'block' takes at most 1, got 9"),
        (
            dict(max_new_tokens=0),
            "max_new_tokens: expected an int of at least 1, or 1 of them, got 0",
        ),
        (
            dict(temperature=-1.0),
            "temperature: expected 0 or a finite number of at least 1e-6, got -1",
        ),
        (
            dict(temperature=[1.0, 2.0]),
            r"temperature: expected one number, or one for each of 1 requests",
        ),
        (dict(draft_temperatures=float("nan")), "draft_temperature: expected 0 or a finite number"),
        (
            dict(draft_temperatures=[1, 2, 3], num_drafts=2),
            "draft_temperatures: expected one, or one for each of 2",
        ),
        (
            dict(draft_temperatures=[1, 2], num_drafts=2, scheme="poisson"),
            "expected one distribution for all drafts of scheme 'po",
        ),
        (
            dict(draft_temperatures=[1, 2], tree=(2, 1)),
            "drafters: expected chains for several drafters or draft temp",
        ),
        (dict(top_k=0), "top_k: expected an int of at least 1"),
        (dict(top_p=0.0), r"top_p: expected a number within \(0, 1\]"),
        (dict(min_p=2.0), r"min_p: expected a number within \[0, 1\]"),
        (dict(repetition_penalty=0.0), "repetition_penalty: expected a number within"),
        (dict(stop_tokens=[61]), r"stop_tokens: expected tokens within 0\.\.60, got 61"),
        (dict(stop_tokens=[-1]), "stop_tokens: expected one int"),
        (
            dict(stop_tokens=[[1], [2]]),
            "stop_tokens: expected token ids, or 1 sequences of them, got 2",
        ),
        (
            dict(stop_tokens=[[1], 2]),
            "stop_tokens: expected token ids, or 1 sequences of them, got 2",
        ),
        (dict(stop_tokens=[None]), "stop_tokens: expected one int"),
        (
            dict(temperature=None),
            "temperature: expected 0 or a finite number of at least 1e-6, got None",
        ),
        (
            dict(temperature=1e39),
            "temperature: expected 0 or a finite number of at least 1e-6, got 1e",
        ),
        (
            dict(num_drafts="2"),
            "num_drafts: expected an int of at least 1 known before tracing, got '2'",
        ),
        (
            dict(num_drafts=True),
            "num_drafts: expected an int of at least 1 known before tracing, got True",
        ),
        (
            dict(target=lambda p, t: t),
            "target: expected a gls_jax.decoding.LanguageModel, got function",
        ),
        (dict(prompts=[[1, [2]]]), "prompts: expected token ids of B requests, got list"),
        (dict(prompt_lengths=[[1], [1, 2]]), "prompt_lengths: expected 1 ints"),
        (
            dict(max_new_tokens=[[1], [1, 2]]),
            "max_new_tokens: expected an int of at least 1, or 1 of them",
        ),
        (dict(draft_temperatures="x"), "draft_temperature: expected 0 or a finite number"),
        (dict(drafters=[3]), r"drafters\[0\]: expected a gls_jax.decoding.LanguageModel, got int"),
        (dict(drafters="two"), "drafters: expected one, or one for each of 3 drafts, got 2"),
        (
            dict(drafters="foreign"),
            r"drafters\[0\]: expected the tokenizer of the target, got another one",
        ),
        (dict(target=None), "target: expected a gls_jax.decoding.LanguageModel, got NoneType"),
        (
            dict(key=jax.random.split(KEY, 2)),
            "key: expected one key, or 1 of them for as many requests, got 2",
        ),
        (dict(key=5), "key: expected a typed key"),
    ],
)
def test_bad_input(target, near, change, message):
    arguments = dict(
        scheme="gls",
        key=KEY,
        target=dataclasses.replace(target, vocabulary="a"),
        drafters=near,
        prompts=[[1, 2]],
    )
    arguments |= change
    if change.get("drafters") == "two":
        arguments |= dict(drafters=[near, near], num_drafts=3)
    if change.get("drafters") == "foreign":
        arguments |= dict(drafters=dataclasses.replace(near, vocabulary="b"))
    with pytest.raises(ValueError, match=message):
        decoding.generate(**arguments)
