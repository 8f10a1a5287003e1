"""Plans of small dumps made by hand: which kernel, which tails, which texts."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gls_jax import decoding, distributions, planner
from gls_jax.planner import Setting, measured_generation, rounds
from gls_jax.runs.resume import Manifest

pytestmark = pytest.mark.usefixtures("quick_compilation")

COSTS = planner.Costs(
    1, 64, {1: 0.01, 64: 0.1}, {1: 0.1, 64: 0.2}, {name: {1: 0.01} for name in planner.NAMES}, 0.01
)


def make_dump(p, q, begins, **configuration):
    """A dump of distributions `[P, W + 1]`, the last token cut off."""
    tokens = np.tile(np.arange(p.shape[1] - 1), (len(p), 1))
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(p[:, :-1]), np.log(q[:, :-1])
    rows = distributions.Rows(tokens, log_p, log_q, p[:, -1], q[:, -1], np.array(begins))
    manifest = Manifest(1, {"own_text": True, **configuration}, {})
    return distributions.Dump(Path("here"), manifest, rows)


def random_dump(**configuration):
    p, q = np.random.default_rng(3).dirichlet(np.ones(5), (2, 12))
    return make_dump(p, q, np.arange(12) % 6 == 0, **configuration)


def test_truncation_is_half_the_difference_between_tails():
    """A text of two tokens, both the first one, where p = q: MinHash accepts it with probability 1 / (1 + TV)."""
    p, q = np.tile([[0.5, 0.3, 0.2]], (2, 1)), np.tile([[0.5, 0.1, 0.4]], (2, 1))
    dump = make_dump(p, q, [True, False])
    (choice,) = planner.plan(dump, [Setting("minhash", 1, 1)], COSTS)
    # TV 0.2 with merged tails, 0.4 with disjoint ones.
    merged, disjoint = 2 / (2 - 1 / 1.2), 2 / (2 - 1 / 1.4)
    assert choice.block_efficiency == pytest.approx(merged, abs=1e-6)
    assert choice.truncation == pytest.approx((merged - disjoint) / 2, abs=1e-6)


def test_strong_streams_are_those_of_the_round():
    two, four = Setting("gls_strong", 2, 3), Setting("gls_strong", 4, 3)
    dump = random_dump()
    (alone,) = planner.efficiencies(dump, [two])
    _, beside_four = planner.efficiencies(dump, [four, two])
    assert beside_four.mean == alone.mean


def test_dump_of_another_text_is_refused():
    with pytest.raises(
        ValueError, match="here: expected a dump of the target's own text, got one of another text"
    ):
        planner.efficiencies(random_dump(own_text=False), [Setting("naive", 1, 1)])


def test_tokens_that_are_impossible_in_the_dump_are_planned():
    """The sampler's distribution differed in the last bit: such tokens, drafted or not, spoil no plan."""
    dump = random_dump()
    dump.rows.log_q[[3, 4], 0] = -np.inf
    dump.rows.log_p[4, 0] = -np.inf
    choices = planner.plan(dump, planner.settings(planner.NAMES, [3], [3]), COSTS)
    rates = [choice.tokens_per_second for choice in choices]
    assert len(choices) == len(planner.NAMES)
    assert np.isfinite(rates).all() and rates == sorted(rates, reverse=True)
    assert all(1 < choice.block_efficiency < 4 for choice in choices)


def test_end_of_a_text_is_no_rejection():
    """Drafts beyond the last token of a text do not count: the probability at a depth is over the rounds that reach it."""
    equal = rounds.block_efficiency(np.ones((12, 4)), np.arange(12) % 3 == 0)
    np.testing.assert_equal(equal.by_position, (1, 1, 1, np.nan))
    third = rounds.block_efficiency(np.tile([[0.5, 0.2, 0.1]], (4, 1)), np.arange(4) % 2 == 0)
    np.testing.assert_allclose(third.by_position, (0.5, 0.4, np.nan))


def test_measured_rate_is_of_the_batch(monkeypatch):
    """Two texts of 3 and 5 tokens in 2 and 3 rounds of half a second each; plain steps take a fifth."""
    metrics = SimpleNamespace(histogram=np.array([[1, 1], [1, 2]]))
    run = SimpleNamespace(generation=SimpleNamespace(lengths=np.array([3, 5]), metrics=metrics))

    def stream(keys, target, drafter, prompts, **options):
        return None if drafter is None else run

    def round_seconds(run):
        return [0.5, 0.5, 0.7] if run else [0.2, 0.2, 9.0]

    monkeypatch.setattr(measured_generation, "decoding", SimpleNamespace(stream=stream))
    monkeypatch.setattr(measured_generation, "round_seconds", round_seconds)
    measured = planner.measure_generation(
        np.zeros(2),
        None,
        "drafter",
        [[0]],
        Setting("gls", 1, 1),
        batch=2,
        options=decoding.DecodeOptions(),
    )
    assert (measured.block_efficiency, measured.rounds) == (1.6, 5)
    assert measured.tokens_per_second == pytest.approx(2 * 1.6 / 0.5)
    assert measured.speedup == pytest.approx(1.6 * 0.2 / 0.5)
