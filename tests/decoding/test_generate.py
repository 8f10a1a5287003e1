"""The engine: what a text depends on, where it ends, what is compiled, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import monitoring

from gls_jax import decoding, models
from gls_jax.decoding import MarginTree

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(3)
TOKENS = 61
CONFIG = models.Config(
    vocab_size=TOKENS,
    hidden_size=24,
    intermediate_size=40,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
)


def transformer(seed):
    """A tiny decoder with a cache, whose laws are neither flat nor points."""
    graph, params = nnx.split(models.Transformer(CONFIG, rngs=nnx.Rngs(seed)))
    return models.language_model(
        nnx.merge(graph, jax.tree.map(lambda x: x * 6 if x.ndim > 1 else x, params))
    )


def trigram(params, tokens):
    """Logits that depend on the last two tokens and the position: quick to compile."""
    before = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    return (
        params[0][tokens]
        + jnp.roll(params[1][before], 1, axis=-1)
        + jnp.cos(jnp.arange(tokens.shape[1]))[:, None]
    )


def table(seed, size=TOKENS):
    params = 2 * jax.random.normal(jax.random.key(seed), (2, size, size))
    return decoding.from_function(trigram, params, size)


def noisy(model, scale):
    keys = iter(jax.random.split(jax.random.key(9), len(jax.tree.leaves(model.params))))
    params = jax.tree.map(
        lambda x: x + scale * jax.random.normal(next(keys), x.shape), model.params
    )
    return dataclasses.replace(model, params=params)


@pytest.fixture(scope="module")
def target():
    return table(0)


@pytest.fixture(scope="module")
def near(target):
    return noisy(target, 0.5)


def prompts_of(count, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 61, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def texts(generation):
    return [
        row[:length].tolist()
        for row, length in zip(
            np.asarray(generation.tokens), np.asarray(generation.lengths), strict=True
        )
    ]


# What a text depends on

ROWS, CHAINS = (
    8,
    dict(num_drafts=2, draft_length=3),
)  # where nothing else is needed: programs are compiled once

STRONG = [
    ("gls_strong", dict(num_drafts=3)),
    ("poisson", dict(num_drafts=3)),
    ("poisson", dict(tree=(3, 2, 1))),
    ("gumbel_topk", dict(tree=MarginTree(12, 3))),
    ("gumbel_topk", dict(num_drafts=4)),
    ("minhash", dict()),
]


@pytest.mark.parametrize(
    ("scheme", "shape"), STRONG, ids=lambda x: x if isinstance(x, str) else "-".join(x)
)
def test_strong_schemes_give_the_text_of_plain_generation(scheme, shape):
    """200 prompts, a near, a random and a model-free drafter: token for token, but for ties that rounding decides."""
    prompts, make = (
        prompts_of(200),
        transformer if scheme == "gumbel_topk" and "tree" in shape else table,
    )
    target = make(0)
    ask = dict(
        scheme=scheme, max_new_tokens=10, temperature=0.7, num_drafts=shape.get("num_drafts", 1)
    )
    plain = texts(decoding.generate(KEY, target, None, prompts, **ask))
    drafters = {
        "near": noisy(target, 0.5 if make is table else 0.02),
        "random": make(5),
    }  # compiled once
    if scheme == "minhash":
        drafters["lookup"] = decoding.ngram_lookup(61)
    for name, drafter in drafters.items():
        found = decoding.generate(KEY, target, drafter, prompts, draft_length=3, **ask | shape)
        flips = sum(a != b for a, b in zip(texts(found), plain, strict=True))
        assert flips <= 1, f"{flips} of 200 texts differ with drafter {name}"
        if name == "near":
            assert found.metrics.block_efficiency > 1.5
    assert plain != texts(decoding.generate(jax.random.key(4), target, None, prompts, **ask))


def test_gls_depends_on_its_drafts_only(target, near):
    """Conditional invariance: another model that drafts the same tokens gives the same text."""
    ask = dict(CHAINS, scheme="gls", max_new_tokens=10)
    softer = dataclasses.replace(
        near, apply=_Sharpened(near.apply)
    )  # greedy drafts are those of any temperature
    one = decoding.generate(KEY, target, near, prompts_of(ROWS), draft_temperatures=0, **ask)
    other = decoding.generate(KEY, target, softer, prompts_of(ROWS), draft_temperatures=0, **ask)
    assert texts(one) == texts(other)


@dataclasses.dataclass(frozen=True)
class _Sharpened:
    apply: object

    def __call__(self, *inputs):
        logits, cache = self.apply(*inputs)
        return logits * 3, cache


@pytest.mark.parametrize("scheme", ["gls", "specinfer", "traversal"])
def test_a_request_does_not_know_who_shares_its_batch(target, near, scheme):
    prompts, keys = prompts_of(ROWS, seed=1), jax.random.split(KEY, ROWS)
    ask = dict(CHAINS, scheme=scheme, max_new_tokens=9, top_k=20)
    together = texts(decoding.generate(keys, target, near, prompts, **ask))
    backwards = texts(decoding.generate(keys[::-1], target, near, prompts[::-1], **ask))[::-1]
    assert together == backwards
    if scheme == "gls":
        alone = [
            texts(decoding.generate(keys[r : r + 1], target, near, [prompts[r]], **ask))[0]
            for r in (0, 3, 7)
        ]
        assert alone == [together[r] for r in (0, 3, 7)]


def test_one_key_is_folded_for_each_request(target):
    keys = jax.vmap(lambda row: jax.random.fold_in(KEY, row))(jnp.arange(3))
    ask = dict(scheme="gls", max_new_tokens=5)
    one, many = (decoding.generate(key, target, None, prompts_of(3), **ask) for key in (KEY, keys))
    assert texts(one) == texts(many)


def test_a_drafter_that_is_the_target_is_always_right(target):
    for shape in (dict(num_drafts=3, draft_length=4), dict(tree=MarginTree(8, 4, 2, 4))):
        found = decoding.generate(
            KEY, target, target, prompts_of(4), scheme="gumbel_topk", max_new_tokens=10, **shape
        )
        assert found.metrics.histogram[:, :-1].sum() == 0, shape


def test_greedy(target, near):
    """Temperature 0 follows the largest logit, whatever the scheme and the seed."""
    prompts = prompts_of(ROWS)
    ask = dict(CHAINS, max_new_tokens=6, temperature=0.0)
    out = [
        texts(decoding.generate(jax.random.key(seed), target, near, prompts, scheme=scheme, **ask))
        for seed, scheme in enumerate(("gls", "traversal"))
    ]
    expected = []
    for prompt in prompts:
        text = list(prompt)
        for _ in range(6):
            filled = jnp.pad(jnp.array([text]), ((0, 0), (0, 20 - len(text))))
            text.append(int(trigram(target.params, filled)[0, len(text) - 1].argmax()))
        expected.append(text[len(prompt) :])
    assert out == [expected] * 2


# Where a text ends


def test_texts_are_cut_from_one_long_text(target, near):
    """Limits, stop tokens and the end of the context cut a text, and change nothing before the cut."""
    prompts = prompts_of(ROWS, seed=2)
    ask = dict(CHAINS, scheme="gls")
    whole = texts(decoding.generate(KEY, target, near, prompts, max_new_tokens=16, **ask))
    for limit in (1, 5, 16):
        assert texts(
            decoding.generate(KEY, target, near, prompts, max_new_tokens=limit, **ask)
        ) == [text[:limit] for text in whole]
    limits = [1, 2, 3, 4, 5, 6, 7, 8]
    found = decoding.generate(KEY, target, near, prompts, max_new_tokens=limits, **ask)
    assert texts(found) == [text[:limit] for text, limit in zip(whole, limits, strict=True)]
    assert found.tokens.shape == (8, 8) and not np.asarray(found.tokens)[0, 1:].any()
    longest = max(map(len, prompts)) + 3
    found = decoding.generate(
        KEY, target, near, prompts, max_new_tokens=16, max_length=longest, **ask
    )
    assert texts(found) == [
        text[: longest - len(prompt)] for text, prompt in zip(whole, prompts, strict=True)
    ]
    stops = [{text[r % 5]} for r, text in enumerate(whole)]
    found = decoding.generate(
        KEY, target, near, prompts, max_new_tokens=16, stop_tokens=stops, **ask
    )
    assert texts(found) == [
        text[: text.index(*stop) + 1] for text, stop in zip(whole, stops, strict=True)
    ]


def test_streaming_gives_the_same_tokens(target, near):
    prompts = prompts_of(3)
    ask = dict(scheme="gumbel_topk", tree=MarginTree(8, 3), max_new_tokens=9)
    run = decoding.stream(KEY, target, near, prompts, options=decoding.DecodeOptions(**ask))
    pieces = list(run)
    whole = decoding.generate(KEY, target, near, prompts, **ask)
    assert [np.concatenate([new[r] for new in pieces]).tolist() for r in range(3)] == texts(whole)
    assert len(pieces) == run.generation.metrics.rounds == whole.metrics.rounds
    assert all(len(new[r]) <= 4 for new in pieces for r in range(3))


def test_timed_rounds_give_the_same_tokens_and_the_times_of_the_parts(target, near):
    ask = dict(CHAINS, scheme="gls", max_new_tokens=6)
    timed = decoding.generate(KEY, target, near, prompts_of(ROWS), timed=True, **ask)
    assert texts(timed) == texts(decoding.generate(KEY, target, near, prompts_of(ROWS), **ask))
    assert set(timed.metrics.seconds) == {"draft", "verify", "select", "other"}
    assert all(seconds > 0 for seconds in timed.metrics.seconds.values())


# Drafters


def test_diverse_drafters_have_chains_of_their_own(target, near):
    """Only the second of three drafters is any good, and it finds the way back after each round."""
    bad = [table(seed) for seed in (5, 6)]
    ask = dict(
        scheme="gls",
        num_drafts=3,
        draft_length=3,
        max_new_tokens=14,
        draft_temperatures=[1.0, 1e-3, 1.0],
    )
    found = decoding.generate(
        KEY, target, [bad[0], target, bad[1]], prompts_of(4), temperature=1e-3, **ask
    )
    assert found.metrics.acceptance_by_position.min() > 0.99
    assert found.metrics.calls_per_round == 9


def test_vocabularies_of_another_size(target):
    """A drafter's missing tokens are impossible, those it has beyond the target's are dropped."""
    prompts = prompts_of(3)
    prompts = [[min(token, 50) for token in prompt] for prompt in prompts]
    for size, scheme in ((53, "gls"), (64, "specinfer")):
        found = decoding.generate(
            KEY, target, table(0, size), prompts, scheme=scheme, max_new_tokens=12
        )
        assert found.lengths.tolist() == [12] * 3 and int(found.tokens.max()) < 61


def test_several_drafters_of_different_vocabularies(target):
    drafters = [table(0, 53), table(0), table(0, 70)]
    found = decoding.generate(
        KEY, target, drafters, prompts_of(3), scheme="gls", num_drafts=3, max_new_tokens=9
    )
    assert found.lengths.tolist() == [9] * 3


def test_margin_trees_with_more_read_than_verified(target):
    """The drafter's cache holds all it reads: the target as its own drafter is right to the end."""
    shape = MarginTree(6, 6, frontier=8, children=8)
    run = decoding.stream(
        KEY,
        target,
        target,
        [list(range(1, 17))] * 2,
        options=decoding.DecodeOptions(
            scheme="gumbel_topk", temperature=1e-3, max_new_tokens=64, tree=shape
        ),
    )
    assert [len(new[0]) for new in run] == [7] * 9 + [1]


def test_lookup_drafts_what_came_before():
    lookup = decoding.ngram_lookup(20, longest=2)
    text = [3, 4, 5, 9, 4, 5, 7, 3, 4, 5]

    def after(text):
        tokens, where = jnp.array([text]), jnp.arange(len(text))[None]
        return int(
            lookup.apply((), tokens, where, None, lookup.init_cache(1, 16))[0][0, -1].argmax()
        )

    assert after(text) == 7  # the latest of the two places where 4, 5 stood
    assert after(text[:5]) == 5  # only the last token was seen before
    assert after([8, 6]) == 6  # nothing was


# Compilation


def test_new_prompts_of_a_bucket_compile_nothing(target, near):
    compiled = []
    monitoring.register_event_duration_secs_listener(
        lambda name, _, **more: (
            compiled.append(more.get("fun_name")) if "backend_compile" in name else None
        )
    )
    for shape in (dict(num_drafts=2), dict(scheme="gumbel_topk", tree=MarginTree(8, 3))):
        ask = dict(scheme="gls", stop_tokens=[5]) | shape
        first, second = prompts_of(2, seed=1, longest=10), prompts_of(2, seed=2, longest=15)
        decoding.generate(
            KEY, target, near, first, max_new_tokens=20, temperature=0.9, top_p=0.9, **ask
        )
        assert compiled
        compiled.clear()
        more = dict(max_new_tokens=[18, 25], temperature=[0.5, 2.0], top_p=0.8)
        found = decoding.generate(jax.random.key(8), table(0), near, second, **more, **ask)
        assert compiled == []
        assert int(found.lengths.max()) > 1


# Bad input


def test_a_broken_request_says_so_and_corrupts_nobody(target, near):
    """Logits of NaN after token 7: its request ends, the others' texts are what they are without it."""
    first_is_7 = lambda tokens, positions: (tokens == 7) & (positions == 0)  # noqa: E731
    nan = dataclasses.replace(target, apply=_Poisoned(target.apply, first_is_7))
    prompts = [[3, 4], [7], [9]]
    ask = dict(scheme="gls", num_drafts=2, max_new_tokens=6, stop_tokens=[7])
    fine = texts(decoding.generate(KEY, target, near, prompts, **ask))
    with pytest.raises(
        decoding.BrokenLogits, match="got NaN or infinite ones for request 1; the others"
    ) as caught:
        decoding.generate(KEY, nan, near, prompts, **ask)
    found = texts(caught.value.generation)
    assert found[1] == [] and [found[0], found[2]] == [fine[0], fine[2]]


def test_a_law_that_is_not_needed_may_be_none(target, near):
    """NaN behind the end of the context and after tokens that are drafted and never emitted, and a drafter of NaN."""
    prompts, ask = (
        [[1, 2, 3], [4, 5]],
        dict(scheme="gumbel_topk", num_drafts=3, max_length=12, max_new_tokens=16),
    )
    fine = decoding.generate(KEY, target, near, prompts, **ask)
    beyond = dataclasses.replace(
        target, apply=_Poisoned(target.apply, lambda tokens, positions: positions >= 11)
    )
    assert texts(decoding.generate(KEY, beyond, near, prompts, **ask)) == texts(fine)
    nothing = dataclasses.replace(near, params=jax.tree.map(lambda x: x * jnp.nan, near.params))
    assert texts(decoding.generate(KEY, target, nothing, prompts, **ask)) == texts(fine)
    with pytest.raises(decoding.BrokenLogits):
        decoding.generate(KEY, target, nothing, prompts, **ask | dict(scheme="specinfer"))


@dataclasses.dataclass(frozen=True)
class _Poisoned:
    """NaN after some tokens."""

    apply: object
    where: object

    def __call__(self, params, tokens, positions, mask, cache):
        logits, cache = self.apply(params, tokens, positions, mask, cache)
        return jnp.where(self.where(tokens, positions)[..., None], jnp.nan, logits), cache


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
        (dict(scheme="optimal"), "scheme 'optimal'.*12"),
        (dict(num_drafts=0), "num_drafts: expected an int of at least 1, got 0"),
        (dict(draft_length=0), "draft_length: expected an int of at least 1, got 0"),
        (
            dict(tree=MarginTree(4, 2)),
            "tree: expected scheme 'gumbel_topk' for a margin tree, got 'gls'",
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
            "expected one law for all drafts of scheme 'po",
        ),
        (
            dict(draft_temperatures=[1, 2], tree=(2, 1)),
            "drafters: expected chains for drafters or draft temp",
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
    given = dict(
        key=KEY, target=dataclasses.replace(target, vocabulary="a"), drafters=near, prompts=[[1, 2]]
    )
    given |= change
    if change.get("drafters") == "two":
        given |= dict(drafters=[near, near], num_drafts=3)
    if change.get("drafters") == "foreign":
        given |= dict(drafters=dataclasses.replace(near, vocabulary="b"))
    positional = [given.pop(name) for name in ("key", "target", "drafters", "prompts")]
    with pytest.raises(ValueError, match=message):
        decoding.generate(*positional, **dict(scheme="gls") | given)
