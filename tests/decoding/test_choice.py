"""Automatic drafting: what it chooses, that the text is that without, and what it costs."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import decoding
from gls_jax.decoding import cost_measurement
from gls_jax.decoding.lookup import find_match
from tests.decoding.tiny_models import (
    KEY,
    noisy,
    random_prompts,
    texts,
    transformer,
    trigram_model,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

LENGTHS = dict(draft_lengths=(2, 4), draft_trees=(), lookup_lengths=(3, 6))
COSTS = (1.0, 1.2, 1.4, 1.2, 1.4)
# The trees that these schemes may have beside the chains.
TREES = {
    "gumbel_topk": decoding.MarginTree(4, 3),
    "topk": decoding.BestFirstTree(4, 3),
    "poisson": (2, 1),
    "gls_strong": [3, 1],
}
STRONG = {
    "gumbel_topk": dict(num_drafts=2),
    "poisson": dict(num_drafts=2),
    "gls_strong": dict(num_drafts=3),
    "topk": dict(num_drafts=1),
    "minhash": dict(num_drafts=1),
}


@pytest.mark.parametrize("scheme", STRONG)
def test_text_of_plain_generation(scheme):
    """200 prompts in four batches, with a drafter near the target."""
    target = trigram_model(0)
    drafting, costs = dict(LENGTHS), COSTS
    if scheme in TREES:
        drafting["draft_trees"], costs = [TREES[scheme]], (1.0, 1.2, 1.4, 1.05, 1.2, 1.4)
    automatic = decoding.auto(noisy(target, 0.5), **drafting, costs=costs)
    options = dict(scheme=scheme, max_new_tokens=24, temperature=0.3) | STRONG[scheme]
    prompts = random_prompts(200)
    num_flips, modes = 0, {}
    for start in range(0, 200, 50):
        batch = prompts[start : start + 50]
        plain = decoding.generate(KEY, target, None, batch, **options)
        fast = decoding.generate(KEY, target, automatic, batch, **options)
        num_flips += sum(a != b for a, b in zip(texts(plain), texts(fast), strict=True))
        for name, rounds in fast.metrics.modes.items():
            modes[name] = modes.get(name, 0) + rounds
        assert fast.metrics.rounds < plain.metrics.rounds
    assert num_flips <= 1, f"{num_flips} of 200 texts differ"
    assert sum(rounds for name, rounds in modes.items() if name.startswith("model")) > 0
    assert modes["plain"] < 100
    if scheme in TREES:
        (rounds_with_tree,) = [rounds for name, rounds in modes.items() if "tree" in name]
        assert rounds_with_tree > 0


def test_models_with_a_cache_catch_up():
    """The drafter reads nothing in rounds without it; the text stays, and so does what it accepts."""
    target = transformer(0)
    options = dict(scheme="gumbel_topk", max_new_tokens=130, temperature=0.5)
    prompts = random_prompts(4)
    plain = decoding.generate(KEY, target, None, prompts, **options)
    drafter = noisy(target, 0.0)
    automatic = decoding.auto(
        drafter, draft_lengths=(3,), draft_trees=(), lookup_lengths=(3,), costs=(1, 1.5, 1.4)
    )
    run = decoding.stream(
        KEY, target, automatic, prompts, options=decoding.DecodeOptions(**options)
    )
    accepted_after_pause = []
    # At last more tokens than are read in one call.
    for mode in [1, *[0] * 6, 1, 1, 2, 2, 1, *[0] * 5, 1, *[0] * 71, 1, 1, 1]:
        choice = run._state.choice._replace(forced=jnp.int32(mode))
        run._state = run._state._replace(choice=choice)
        before = np.asarray(run._state.histogram)
        next(run)
        if mode == 1:
            counts = np.asarray(run._state.histogram) - before
            accepted_after_pause.append(counts @ np.arange(counts.shape[1]))
    assert texts(run.finish()) == texts(plain)
    # The drafter is the target: all drafts are accepted, unless it has not read the whole text.
    assert np.min(accepted_after_pause) == 3


def test_speculation_that_does_not_pay_is_left_off():
    """A drafter of another language, and texts that repeat nothing: at most 5 % more than plain generation."""
    target, other = trigram_model(0), trigram_model(7)
    automatic = decoding.auto(other, **LENGTHS, costs=COSTS)
    options = dict(scheme="gumbel_topk", max_new_tokens=250, temperature=1.0)
    generation = decoding.generate(KEY, target, automatic, random_prompts(8), **options)
    rounds = np.array(list(generation.metrics.modes.values()))
    assert rounds @ np.array(COSTS) < 1.05 * 250
    assert rounds[0] > 150


def test_look_up_where_the_text_repeats():
    cycle = decoding.from_function(
        lambda params, tokens: params[tokens], 9 * jnp.roll(jnp.eye(7), 1, axis=1), 7
    )
    automatic = decoding.auto(**LENGTHS, costs=(1, 1.2, 1.4))
    prompts, options = [[0, 1, 2], [3]], dict(max_new_tokens=70, temperature=0.2)
    generation = decoding.generate(KEY, cycle, automatic, prompts, **options)
    assert texts(generation) == texts(decoding.generate(KEY, cycle, None, prompts, **options))
    assert generation.metrics.modes["lookup 6"] > 5 and generation.metrics.rounds < 25


def test_costs_are_measured_once():
    cost_measurement._MEASUREMENTS.clear()
    target = trigram_model(0)
    automatic = decoding.auto(noisy(target, 0.5), **LENGTHS)
    prompts, options = random_prompts(3), dict(max_new_tokens=60)
    first = decoding.generate(KEY, target, automatic, prompts, **options)
    (measurement,) = cost_measurement._MEASUREMENTS.values()
    costs = measurement.costs
    assert costs[0] == 1 and all(0.1 < cost < 50 for cost in costs)
    assert min(first.metrics.modes.values()) >= 3
    decoding.generate(KEY, target, automatic, prompts, **options)
    assert [each.costs for each in cost_measurement._MEASUREMENTS.values()] == [costs]
    # Those of another model are its own, and short texts measure together.
    other = trigram_model(5, vocab_size=40)
    automatic = decoding.auto(noisy(other, 0.5), **LENGTHS)
    for _ in range(20):
        decoding.generate(KEY, other, automatic, [[1], [2], [3]], max_new_tokens=4)
    _, of_other = cost_measurement._MEASUREMENTS.values()
    assert of_other.is_complete and of_other.costs != costs
    assert texts(first) == texts(decoding.generate(KEY, target, None, prompts, **options))


def test_two_streams_measure_together_and_an_interrupted_round_is_measured_again(monkeypatch):
    cost_measurement._MEASUREMENTS.clear()
    target = trigram_model(0, vocab_size=43)
    automatic = decoding.auto(noisy(target, 0.5), **LENGTHS)
    options = decoding.DecodeOptions(max_new_tokens=60)
    one, other = (decoding.stream(KEY, target, automatic, [[1]], options=options) for _ in "12")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cost_measurement.engine, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(one)
    one, third = (decoding.stream(KEY, target, automatic, [[1]], options=options) for _ in "12")
    for _ in zip(range(12), one, other, strict=False):
        pass
    for run in (one, other, third):
        next(run)
        costs = np.asarray(run._state.choice.costs)
        (measurement,) = cost_measurement._MEASUREMENTS.values()
        np.testing.assert_allclose(costs, np.array(measurement.costs), rtol=1e-6)


def test_threads_measure_one_after_the_other():
    cost_measurement._MEASUREMENTS.clear()
    target = trigram_model(0, vocab_size=37)
    automatic = decoding.auto(noisy(target, 0.5), **LENGTHS)
    options = dict(max_new_tokens=40)
    prompts = [[1], [2]]
    expected = texts(decoding.generate(KEY, target, None, prompts, **options))

    def generate(_):
        return texts(decoding.generate(KEY, target, automatic, prompts, **options))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(generate, range(8))) == [expected] * 8


def test_strict_promotion_changes_nothing():
    target = trigram_model(0)
    automatic = decoding.auto(noisy(target, 0.5), costs=(1, 1.2, 1.4, 1.2, 1.2, 1.4))
    options = dict(max_new_tokens=12, temperature=0.5)
    expected = texts(decoding.generate(KEY, target, automatic, [[1, 2]], **options))
    with jax.numpy_dtype_promotion("strict"):
        assert texts(decoding.generate(KEY, target, automatic, [[1, 2]], **options)) == expected


def test_a_checkpoint_is_one_drafter():
    class Checkpoint(NamedTuple):
        model: object
        language_model: object

    target = trigram_model(0)
    automatic = decoding.auto(Checkpoint(None, target), costs=(1, 1.2, 1.4, 1.2, 1.2, 1.4))
    assert decoding.generate(KEY, target, automatic, [[1]], max_new_tokens=4).lengths.tolist() == [
        4
    ]


def test_modes_of_one_name_are_counted_together():
    target = trigram_model(0)
    automatic = decoding.auto(
        target, draft_lengths=(4, 4), draft_trees=(), lookup_lengths=(3,), costs=(1, 0.1, 0.2, 2)
    )
    metrics = decoding.generate(KEY, target, automatic, [[1]], max_new_tokens=20).metrics
    assert metrics.modes["model 4"] == metrics.rounds


def test_acceptance_counts_only_rounds_that_had_drafts():
    """The drafter is the target, so its chains of two are accepted whole."""
    target = trigram_model(0)
    automatic = decoding.auto(
        target, draft_lengths=(2,), draft_trees=(), lookup_lengths=(12,), costs=(1, 1.1, 50)
    )
    options = decoding.DecodeOptions(max_new_tokens=40, scheme="poisson", temperature=0.5)
    run = decoding.stream(KEY, target, automatic, [[1], [2]], options=options)
    for mode in [0, 1, 1, 0, 1, 1]:
        choice = run._state.choice._replace(forced=jnp.int32(mode))
        run._state = run._state._replace(choice=choice)
        next(run)
    metrics = run.generation.metrics
    assert metrics.acceptance_by_position[:2].tolist() == [1, 1]
    assert np.isnan(metrics.acceptance_by_position[2:]).all()
    figures = metrics.speculative_decoding(0)
    assert figures["num_spec_steps"] == 4 and figures["num_spec_tokens"] == 2
    assert figures["mean_acceptance_length"] == 3 and figures["acceptance_histogram"][:3] == [
        0,
        0,
        4,
    ]
    assert metrics.mean_acceptance_length == pytest.approx(14 / 6)


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ([5, 6, 7, 8, 5, 6, 0, 0], 6, (2, 2)),
        ([1, 1, 1, 1, 0, 0, 0, 0], 4, (3, 3)),
        ([1, 2, 3, 4, 0, 0, 0, 0], 4, (None, 0)),
        ([1, 2, 9, 3, 2, 9, 2, 9], 8, (6, 2)),
        ([4, 0, 0, 0, 0, 0, 0, 0], 1, (None, 0)),
    ],
)
def test_matches(text, length, expected):
    match = find_match(jnp.array([text]), jnp.array([length]))
    assert int(match.length[0]) == expected[1]
    if expected[0] is not None:
        assert int(match.next_position[0]) == expected[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(lookup=False), "auto: expected a drafter, or lookup=True, got neither"),
        (dict(drafter=[1, 2]), "auto: expected one drafter or None, got list"),
        (dict(drafter="smollm2"), "auto: expected one drafter or None, got str"),
        (dict(costs=5), "costs: expected positive numbers, got 5"),
        (dict(costs=(1, None)), "costs: expected positive numbers"),
        (dict(costs="abc"), "costs: expected positive numbers, got 'abc'"),
        (dict(draft_trees=decoding.MarginTree(4, 3)), "draft_trees: expected a list of trees"),
        (dict(draft_trees=["margin"]), "draft_trees: expected a list of trees"),
        (dict(lookup_lengths=(3 * 10**9,)), "lookup_lengths: expected at most 8192"),
        (dict(lookup_lengths=(0,)), "lookup_lengths: expected"),
        (dict(costs=(1, float("nan"), 1)), "costs: expected positive numbers"),
        (dict(draft_trees=((2, 0),)), "draft_trees: expected"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        decoding.auto(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(costs=(1, 2)), "costs: expected 6 numbers"),
        (
            dict(draft_trees=((5, 1),)),
            r"draft_trees: expected at most num_drafts \(1\) children, got 5",
        ),
        (dict(draft_trees=(decoding.BestFirstTree(4, 3),)), "tree: expected scheme 'topk'"),
    ],
)
def test_arguments_that_do_not_fit_the_scheme(arguments, message):
    target = trigram_model(0)
    automatic = decoding.auto(target, **arguments)
    with pytest.raises(ValueError, match=message):
        decoding.generate(KEY, target, automatic, [[1]], max_new_tokens=2)


def test_trees_and_timed_runs_are_refused():
    target = trigram_model(0)
    for options, message in (
        (dict(tree=(2, 1)), "tree: expected None"),
        (dict(timed=True), "timed"),
    ):
        with pytest.raises(ValueError, match=message):
            decoding.generate(KEY, target, decoding.auto(), [[1]], **options)


def test_trees_take_one_draft_temperature():
    target = trigram_model(0)
    automatic = decoding.auto(target, draft_trees=((2, 1),))
    options = dict(scheme="gls", num_drafts=2, draft_temperatures=(0.5, 1.0), max_new_tokens=2)
    with pytest.raises(ValueError, match="drafters: expected chains for several"):
        decoding.generate(KEY, target, automatic, [[1]], **options)
