"""What a generated text depends on, where it ends, streams and timed runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import decoding
from gls_jax.decoding import BestFirstTree, MarginTree
from tests.decoding.tiny_models import (
    CHAINS,
    KEY,
    ROWS,
    noisy,
    observing_drafter,
    random_prompts,
    texts,
    transformer,
    trigram,
    trigram_model,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

# What a text depends on

STRONG = [
    ("gls_strong", dict(num_drafts=3)),
    ("poisson", dict(num_drafts=3)),
    ("poisson", dict(tree=(3, 2, 1))),
    ("gumbel_topk", dict(tree=MarginTree(12, 3))),
    ("gumbel_topk", dict(num_drafts=4)),
    ("topk", dict(tree=BestFirstTree(12, 3))),
    ("topk", dict(num_drafts=3)),
    ("minhash", dict()),
]


@pytest.mark.parametrize(
    ("scheme", "shape"), STRONG, ids=lambda x: x if isinstance(x, str) else "-".join(x)
)
def test_strong_schemes_give_the_text_of_plain_generation(scheme, shape):
    """200 prompts, a near, a random and a model-free drafter: token for token, but for ties that rounding decides."""
    prompts = random_prompts(200)
    is_margin_tree = scheme == "gumbel_topk" and "tree" in shape
    make, scale = (transformer, 0.02) if is_margin_tree else (trigram_model, 0.5)
    target = make(0)
    options = dict(
        scheme=scheme, max_new_tokens=10, temperature=0.7, num_drafts=shape.get("num_drafts", 1)
    )
    plain = texts(decoding.generate(KEY, target, None, prompts, **options))
    drafters = {"near": noisy(target, scale), "random": make(5)}  # compiled once
    if scheme == "minhash":
        drafters["lookup"] = decoding.ngram_lookup(61)
    for name, drafter in drafters.items():
        generation = decoding.generate(
            KEY, target, drafter, prompts, draft_length=3, **options | shape
        )
        flips = sum(a != b for a, b in zip(texts(generation), plain, strict=True))
        assert flips <= 1, f"{flips} of 200 texts differ with drafter {name}"
        if name == "near":
            assert generation.metrics.block_efficiency > 1.5
    assert plain != texts(decoding.generate(jax.random.key(4), target, None, prompts, **options))


@pytest.mark.parametrize(
    ("scheme", "shape"),
    [
        (scheme, shape)
        for scheme, shape in STRONG
        if "num_drafts" in shape or scheme == "gumbel_topk"
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x),
)
def test_texts_with_a_drafter_that_observes_its_target(scheme, shape):
    """200 prompts, a head of 40 of the 61 tokens: the text of plain generation, by strong schemes."""
    prompts, target = random_prompts(200), transformer(0)
    options = dict(
        scheme=scheme, max_new_tokens=8, temperature=0.7, num_drafts=shape.get("num_drafts", 1)
    )
    plain = texts(decoding.generate(KEY, target, None, prompts, **options))
    drafter = observing_drafter()
    generation = decoding.generate(KEY, target, drafter, prompts, draft_length=2, **options | shape)
    flips = sum(a != b for a, b in zip(texts(generation), plain, strict=True))
    assert flips <= 1, f"{flips} of 200 texts differ"
    assert generation.metrics.block_efficiency > 1.02


def test_schemes_of_one_race_give_the_same_text(target, near):
    """`topk` emits what `poisson` and `gumbel_topk` emit with the same key, whatever the drafts."""
    prompts, options = random_prompts(ROWS), dict(CHAINS, max_new_tokens=10)
    of_scheme = [
        texts(decoding.generate(KEY, target, near, prompts, scheme=name, **options))
        for name in ("topk", "poisson", "gumbel_topk")
    ]
    assert of_scheme[0] == of_scheme[1] == of_scheme[2]


def test_topk_drafts_several_tokens_for_a_greedy_target(target, near):
    """Its default draft temperature is the target's, and 1 where that is 0."""
    prompts = random_prompts(ROWS)
    options = dict(scheme="topk", tree=(3, 1), max_new_tokens=12, temperature=[0.0] * 7 + [0.8])
    default = decoding.generate(KEY, target, near, prompts, **options)
    one_draft = decoding.generate(KEY, target, near, prompts, **options | {"tree": (1, 1)})
    assert texts(default) == texts(one_draft)
    assert default.metrics.rounds < one_draft.metrics.rounds
    stated = decoding.generate(KEY, target, near, prompts, draft_temperatures=1.0, **options)
    assert (default.metrics.histogram[:7] == stated.metrics.histogram[:7]).all()


def test_gls_depends_on_its_drafts_only(target, near):
    """Conditional invariance: another model that drafts the same tokens gives the same text."""
    options = dict(CHAINS, scheme="gls", max_new_tokens=10, draft_temperatures=0)
    # Greedy drafts do not change when all logits are multiplied.
    sharper = dataclasses.replace(near, apply=_Sharpened(near.apply))
    one = decoding.generate(KEY, target, near, random_prompts(ROWS), **options)
    other = decoding.generate(KEY, target, sharper, random_prompts(ROWS), **options)
    assert texts(one) == texts(other)


@dataclasses.dataclass(frozen=True)
class _Sharpened:
    apply: object

    def __call__(self, *inputs):
        logits, cache = self.apply(*inputs)
        return logits * 3, cache


@pytest.mark.parametrize("scheme", ["gls", "specinfer", "traversal"])
def test_a_request_does_not_depend_on_its_batch(target, near, scheme):
    prompts, keys = random_prompts(ROWS, seed=1), jax.random.split(KEY, ROWS)
    options = dict(CHAINS, scheme=scheme, max_new_tokens=9, top_k=20)
    together = texts(decoding.generate(keys, target, near, prompts, **options))
    backwards = texts(decoding.generate(keys[::-1], target, near, prompts[::-1], **options))[::-1]
    assert together == backwards
    if scheme == "gls":
        alone = [
            texts(decoding.generate(keys[r : r + 1], target, near, [prompts[r]], **options))[0]
            for r in (0, 3, 7)
        ]
        assert alone == [together[r] for r in (0, 3, 7)]


def test_one_key_is_folded_for_each_request(target):
    keys = jax.vmap(lambda row: jax.random.fold_in(KEY, row))(jnp.arange(3))
    options = dict(scheme="gls", max_new_tokens=5)
    of_one_key = decoding.generate(KEY, target, None, random_prompts(3), **options)
    of_three_keys = decoding.generate(keys, target, None, random_prompts(3), **options)
    assert texts(of_one_key) == texts(of_three_keys)


def test_greedy(target, near):
    """Temperature 0 follows the largest logit, whatever the scheme and the seed."""
    prompts = random_prompts(ROWS)
    options = dict(CHAINS, max_new_tokens=6, temperature=0.0)
    expected = []
    for prompt in prompts:
        text = list(prompt)
        for _ in range(6):
            filled = jnp.pad(jnp.array([text]), ((0, 0), (0, 20 - len(text))))
            text.append(int(trigram(target.params, filled)[0, len(text) - 1].argmax()))
        expected.append(text[len(prompt) :])
    for seed, scheme in enumerate(("gls", "traversal")):
        key = jax.random.key(seed)
        generation = decoding.generate(key, target, near, prompts, scheme=scheme, **options)
        assert texts(generation) == expected


# Where a text ends


def test_texts_are_cut_from_one_long_text(target, near):
    """Limits, stop tokens and the context window cut a text, and change nothing before the cut."""
    prompts = random_prompts(ROWS, seed=2)

    def generate(max_new_tokens=16, **options):
        return decoding.generate(
            KEY,
            target,
            near,
            prompts,
            scheme="gls",
            max_new_tokens=max_new_tokens,
            **CHAINS,
            **options,
        )

    whole = texts(generate())
    for limit in (1, 5, 16):
        assert texts(generate(limit)) == [text[:limit] for text in whole]

    limits = [1, 2, 3, 4, 5, 6, 7, 8]
    generation = generate(limits)
    assert texts(generation) == [text[:limit] for text, limit in zip(whole, limits, strict=True)]
    assert generation.tokens.shape == (8, 8) and not np.asarray(generation.tokens)[0, 1:].any()

    max_length = max(map(len, prompts)) + 3
    assert texts(generate(max_length=max_length)) == [
        text[: max_length - len(prompt)] for text, prompt in zip(whole, prompts, strict=True)
    ]

    stop_tokens = [{text[r % 5]} for r, text in enumerate(whole)]
    assert texts(generate(stop_tokens=stop_tokens)) == [
        text[: text.index(*stop) + 1] for text, stop in zip(whole, stop_tokens, strict=True)
    ]


# Streams and timed runs


def test_streaming_gives_the_same_tokens(target, near):
    prompts = random_prompts(3)
    options = dict(scheme="gumbel_topk", tree=MarginTree(8, 3), max_new_tokens=9)
    stream = decoding.stream(KEY, target, near, prompts, options=decoding.DecodeOptions(**options))
    rounds = list(stream)
    whole = decoding.generate(KEY, target, near, prompts, **options)
    assert [np.concatenate([new[r] for new in rounds]).tolist() for r in range(3)] == texts(whole)
    assert len(rounds) == stream.generation.metrics.rounds == whole.metrics.rounds
    assert all(len(new[r]) <= 4 for new in rounds for r in range(3))


def test_timed_rounds_give_the_same_tokens_and_the_times_of_the_parts(target, near):
    prompts = random_prompts(ROWS)
    options = dict(CHAINS, scheme="gls", max_new_tokens=6)
    timed = decoding.generate(KEY, target, near, prompts, timed=True, **options)
    assert texts(timed) == texts(decoding.generate(KEY, target, near, prompts, **options))
    assert set(timed.metrics.seconds) == {"draft", "verify", "select", "other"}
    assert all(seconds > 0 for seconds in timed.metrics.seconds.values())
