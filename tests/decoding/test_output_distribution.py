"""What is generated has the target's distribution, whatever the scheme, the shape and the parameters.

Each test fails a correct engine with probability at most ALPHA for another key: below 1e-6 for all of them.
"""

import dataclasses

import jax
import numpy as np
import pytest

from gls_jax import decoding, schemes
from gls_jax.decoding import BestFirstTree, MarginTree, round_parts
from gls_jax.decoding.cache import with_length
from tests import oracles
from tests.decoding import language

pytestmark = pytest.mark.usefixtures("quick_compilation")

ALPHA = 1e-9
REQUESTS = 20_000
# It sorts at every tree node, for every comparison.
FEWER = {"weighted_importance": 5000}
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
        possible = language.text_probabilities(prompt, NEW, stop, **sampling)
        counts, expected = language.counts(generation, slice(parity, None, 2), possible)
        values.append(oracles.chi_square(counts, expected))
    return 2 * min(values)


def shapes(scheme):
    if scheme.max_drafts == 1:
        return [dict(num_drafts=1, draft_length=2)]
    chains = [dict(num_drafts=3, draft_length=2)]
    trees = [dict(tree=(2, 2))] if scheme.ranked else []
    kinds = {"gumbel_topk": [MarginTree], "topk": [BestFirstTree]}.get(scheme.name, [])
    dynamic = [dict(tree=kind(6, 3, frontier=2, children=3)) for kind in kinds]
    return chains + trees + dynamic


SCHEMES = [schemes.get(name) for name in (*schemes.NAMES, *schemes.PATH_NAMES)]
CASES = [
    pytest.param(s.name, shape, id=f"{s.name}-{i}")
    for s in SCHEMES
    for i, shape in enumerate(shapes(s))
]


@pytest.mark.parametrize(("scheme", "shape"), CASES)
def test_distribution(scheme, shape):
    """With top-k, top-p, a temperature, a stop token inside blocks, and prompts of two lengths in one batch."""
    num = FEWER.get(scheme, REQUESTS)
    assert p_value(generate(scheme, language.drafters[0], num, **shape, **SHARED), **SHARED) > ALPHA


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_drafter_that_observes_the_target(scheme):
    """Its output head has three of the four tokens; in the last shape of each scheme."""
    *_, shape = shapes(scheme)
    generation = generate(
        scheme.name,
        language.observing_drafter(),
        FEWER.get(scheme.name, REQUESTS),
        target=language.target_with_features,
        **shape,
        **SHARED,
    )
    assert p_value(generation, **SHARED) > ALPHA
    assert generation.metrics.block_efficiency > 1.1


def generate_in_modes(scheme, modes, drafter, num, **options):
    """Automatic drafting whose rounds are forced into these modes, one after the other."""
    tree = (options["num_drafts"], 1)
    automatic = decoding.auto(
        drafter,
        draft_lengths=(2,),
        draft_trees=(tree,),
        lookup_lengths=(3,),
        costs=(1.0, 1.1, 1.2, 1.2),
    )
    prompts = [PROMPTS[row % 2] for row in range(num)]
    options = decoding.DecodeOptions(scheme=scheme, max_new_tokens=NEW, **options)
    run = decoding.stream(
        jax.random.key(2), language.target_with_features, automatic, prompts, options=options
    )
    for mode in [*modes, *[0] * NEW]:
        choice = run._state.choice._replace(forced=jax.numpy.int32(mode))
        run._state = run._state._replace(choice=choice)
        if next(run, None) is None:
            break
    return run.finish()


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_drafts_from_several_sources(scheme):
    """Look-up, then chains and a tree of a drafter that observes the target, with a reduced head."""
    generation = generate_in_modes(
        scheme.name,
        [3, 1, 2],
        language.observing_drafter(),
        FEWER.get(scheme.name, REQUESTS),
        num_drafts=min(2, scheme.max_drafts or 2),
        **SHARED,
    )
    assert p_value(generation, **SHARED) > ALPHA
    assert list(generation.metrics.modes.values()) == [0, 1, 1, 1]


def test_plain_generation():
    assert p_value(generate("gls", None, **SHARED), **SHARED) > ALPHA


@pytest.mark.parametrize(
    "scheme", ["gls", "gls_strong", "naive", "specinfer", "weighted_importance"]
)
def test_diverse_drafters(scheme):
    """Three drafters at three temperatures; the third is the first again."""
    num = FEWER.get(scheme, REQUESTS)
    drafters = [language.drafters[0], language.drafters[1], language.drafters[0]]
    generation = generate(
        scheme,
        drafters,
        num,
        num_drafts=3,
        draft_length=2,
        draft_temperatures=(0.5, 1, 2),
        **SHARED,
    )
    assert p_value(generation, **SHARED) > ALPHA


@pytest.mark.parametrize("scheme", ["gls", "traversal"])
def test_repetition_penalty_and_min_p(scheme):
    sampling = dict(repetition_penalty=1.4, min_p=0.2)
    generation = generate(scheme, language.drafters[0], num_drafts=2, draft_length=3, **sampling)
    assert p_value(generation, **sampling) > ALPHA


def test_parameters_of_each_request():
    """Every other request has another temperature, top-p and stop token."""
    generation = generate(
        "gls",
        language.drafters[0],
        num_drafts=2,
        draft_length=2,
        temperature=np.tile([0.6, 1.5], REQUESTS // 2),
        top_p=np.tile([0.8, 1.0], REQUESTS // 2),
        stop_tokens=[(1,), ()] * (REQUESTS // 2),
    )
    sampling = [dict(temperature=0.6, top_p=0.8), dict(temperature=1.5, top_p=1.0)]
    for parity, (prompt, stop) in enumerate(zip(PROMPTS, [(1,), ()], strict=True)):
        possible = language.text_probabilities(prompt, NEW, stop, **sampling[parity])
        counts, expected = language.counts(generation, slice(parity, None, 2), possible)
        assert oracles.chi_square(counts, expected) > ALPHA


# Planted defects: the tests above bite.


def keep_without_moving(cache, cache_slots, start, count):
    return with_length(cache, start + count)


def apply_without_mask(params, tokens, positions, mask, cache):
    """Every draft sees all drafts before it, not only its ancestors."""
    return language.target.apply(params, tokens, positions, None, cache)


@pytest.mark.parametrize(
    "change",
    [dict(keep=keep_without_moving), dict(apply=apply_without_mask)],
    ids=["not-moved", "no-mask"],
)
def test_planted_defect_in_the_cache(change):
    defective = dataclasses.replace(language.target, **change)
    assert (
        p_value(
            generate("gls", language.drafters[0], target=defective, num_drafts=3, draft_length=2)
        )
        < ALPHA
    )


def test_planted_defect_in_the_parameters():
    assert p_value(generate("gls", language.drafters[0], num_drafts=2, temperature=1.2)) < ALPHA


def test_planted_defect_in_the_tokens_seen(monkeypatch):
    """A repetition penalty that does not see the drafts before it."""
    monkeypatch.setattr(round_parts, "seen_at_nodes", lambda text, tree: text.seen)
    decoding.engine.run.clear_cache()
    generation = generate(
        "gls", language.drafters[0], num_drafts=2, draft_length=3, repetition_penalty=1.4
    )
    decoding.engine.run.clear_cache()
    assert p_value(generation, repetition_penalty=1.4) < ALPHA
