"""What is generated has the law of the target, whatever the scheme, the shape and the parameters.

Each test fails a correct engine with probability at most ALPHA for another key: below 1e-6 for all of them.
"""

import dataclasses

import jax
import numpy as np
import pytest

from gls_jax import decoding, schemes
from gls_jax.decoding import MarginTree
from gls_jax.decoding.cache import with_length
from tests import oracles
from tests.decoding import language

pytestmark = pytest.mark.usefixtures("quick_compilation")

ALPHA = 1e-9
REQUESTS = 20_000
FEWER = {"optimal": 1000, "weighted_importance": 5000}  # a linear program, and a search, a context
NEW = 3
PROMPTS = ([1, 2, 0], [3])  # every other request
SHARED = dict(temperature=0.8, top_k=3, top_p=0.9, stop_tokens=(2,))


def generate(scheme, drafters, num=REQUESTS, target=language.target, seed=0, **options):
    prompts = [PROMPTS[row % 2] for row in range(num)]
    return decoding.generate(
        jax.random.key(seed),
        target,
        drafters,
        prompts,
        scheme=scheme,
        max_new_tokens=NEW,
        **options,
    )


def p_value(generation, **sampling):
    """The smaller of two p-values, one for each prompt, times two."""
    sampling = dict(sampling)
    stop = sampling.pop("stop_tokens", ())
    values = []
    for parity, prompt in enumerate(PROMPTS):
        law = language.law_of_texts(prompt, NEW, stop, **sampling)
        counts, expected = language.counts(generation, slice(parity, None, 2), law)
        values.append(oracles.chi_square(counts, expected))
    return 2 * min(values)


def shapes(scheme):
    if scheme.max_drafts == 1:
        return [dict(num_drafts=1, draft_length=2)]
    chains = [dict(num_drafts=3, draft_length=2)]
    trees = [dict(tree=(2, 2))] if scheme.ranked else []
    margins = (
        [dict(tree=MarginTree(6, 3, frontier=2, children=3))]
        if scheme.name == "gumbel_topk"
        else []
    )
    return chains + trees + margins


SCHEMES = [schemes.get(name) for name in (*schemes.NAMES, *schemes.PATH_NAMES)]
CASES = [
    pytest.param(s.name, shape, id=f"{s.name}-{i}")
    for s in SCHEMES
    for i, shape in enumerate(shapes(s))
]


@pytest.mark.parametrize(("scheme", "shape"), CASES)
def test_law(scheme, shape):
    """With top-k, top-p, a temperature, a stop token inside blocks, and prompts of two lengths in one batch."""
    num = FEWER.get(scheme, REQUESTS)
    assert p_value(generate(scheme, language.drafters[0], num, **shape, **SHARED), **SHARED) > ALPHA


def test_law_of_plain_generation():
    assert p_value(generate("gls", None, **SHARED), **SHARED) > ALPHA


@pytest.mark.parametrize(
    "scheme", ["gls", "gls_strong", "naive", "specinfer", "weighted_importance", "optimal"]
)
def test_law_with_diverse_drafters(scheme):
    """Three drafters at three temperatures; the third is the first again."""
    num = FEWER.get(scheme, REQUESTS)
    drafters = [language.drafters[0], language.drafters[1], language.drafters[0]]
    found = generate(
        scheme,
        drafters,
        num,
        num_drafts=3,
        draft_length=2,
        draft_temperatures=(0.5, 1, 2),
        **SHARED,
    )
    assert p_value(found, **SHARED) > ALPHA


@pytest.mark.parametrize("scheme", ["gls", "traversal"])
def test_law_with_a_repetition_penalty_and_min_p(scheme):
    more = dict(repetition_penalty=1.4, min_p=0.2)
    assert (
        p_value(
            generate(scheme, language.drafters[0], num_drafts=2, draft_length=3, **more), **more
        )
        > ALPHA
    )


def test_law_of_each_request_is_its_own():
    """Every other request has another temperature, penalty, number of tokens and stop token."""
    shown = dict(num_drafts=2, draft_length=2, temperature=np.tile([0.6, 1.5], REQUESTS // 2))
    shown |= dict(
        top_p=np.tile([0.8, 1.0], REQUESTS // 2), stop_tokens=[(1,), ()] * (REQUESTS // 2)
    )
    found = generate("gls", language.drafters[0], **shown)
    own = [dict(temperature=0.6, top_p=0.8), dict(temperature=1.5, top_p=1.0)]
    for parity, (prompt, stop) in enumerate(zip(PROMPTS, [(1,), ()], strict=True)):
        law = language.law_of_texts(prompt, NEW, stop, **own[parity])
        assert oracles.chi_square(*language.counts(found, slice(parity, None, 2), law)) > ALPHA


# Planted defects: the tests above bite.


def not_moved(cache, slots, start, count):
    return with_length(cache, start + count)


def blind(params, tokens, positions, mask, cache):
    """A tree mask that is forgotten: every draft sees the ones before it."""
    return language.target.apply(params, tokens, positions, None, cache)


@pytest.mark.parametrize(
    "change", [dict(keep=not_moved), dict(apply=blind)], ids=["not-moved", "blind"]
)
def test_planted_defect_in_the_cache(change):
    broken = dataclasses.replace(language.target, **change)
    assert (
        p_value(generate("gls", language.drafters[0], target=broken, num_drafts=3, draft_length=2))
        < ALPHA
    )


def test_planted_defect_in_the_parameters():
    assert p_value(generate("gls", language.drafters[0], num_drafts=2, temperature=1.2)) < ALPHA


def test_planted_defect_a_context_short_of_its_drafts(monkeypatch):
    """A repetition penalty that does not see the drafts before it."""
    monkeypatch.setattr(decoding.engine, "_seen", lambda text, tree: text.seen[:, None])
    decoding.engine.run.clear_cache()
    found = generate(
        "gls", language.drafters[0], num_drafts=2, draft_length=3, repetition_penalty=1.4
    )
    decoding.engine.run.clear_cache()
    assert p_value(found, repetition_penalty=1.4) < ALPHA
