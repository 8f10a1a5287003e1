"""Plans of small dumps made by hand: which kernel, which reading of the tails, which texts."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gls_jax import decoding, distributions, planner
from gls_jax.planner import Setting, check, rounds

pytestmark = pytest.mark.usefixtures("quick_compilation")

COSTS = planner.Costs(
    1, 64, {1: 0.01, 64: 0.1}, {1: 0.1, 64: 0.2}, {name: {1: 0.01} for name in planner.NAMES}, 0.01
)


def dumped(p, q, begins, **facts):
    """A dump of laws `[P, W + 1]`, the last item cut off."""
    tokens = np.tile(np.arange(p.shape[1] - 1), (len(p), 1))
    with np.errstate(divide="ignore"):
        logs = [np.log(law[:, :-1]) for law in (p, q)]
    rows = distributions.Rows(tokens, *logs, p[:, -1], q[:, -1], np.array(begins))
    return distributions.Dump(Path("here"), {"asked": {"own_text": True, **facts}}, rows)


def random_dump(**facts):
    p, q = np.random.default_rng(3).dirichlet(np.ones(5), (2, 12))
    return dumped(p, q, np.arange(12) % 6 == 0, **facts)


def test_truncation_is_half_of_the_distance_of_the_readings():
    """A text of two tokens under one law; a draft is MinHash's, accepted with probability 1 / (1 + distance)."""
    p, q = np.tile([[0.5, 0.3, 0.2]], (2, 1)), np.tile([[0.5, 0.1, 0.4]], (2, 1))
    (choice,) = planner.plan(dumped(p, q, [True, False]), [Setting("minhash", 1, 1)], COSTS)
    shared, apart = 2 / (2 - 1 / 1.2), 2 / (2 - 1 / 1.4)  # the rest at distance 0.2, and at 0.4
    assert choice.block_efficiency == pytest.approx(shared, abs=1e-6)
    assert choice.truncation == pytest.approx((shared - apart) / 2, abs=1e-6)


def test_strong_streams_are_those_of_the_round():
    two, four = Setting("gls_strong", 2, 3), Setting("gls_strong", 4, 3)
    dump = random_dump()
    ((alone,), together) = (
        planner.efficiencies(dump, [two]),
        planner.efficiencies(dump, [four, two]),
    )
    assert together[1].mean == alone.mean


def test_a_text_of_another_is_refused():
    with pytest.raises(
        ValueError, match="here: expected a dump of the target's own text, got one of another text"
    ):
        planner.efficiencies(random_dump(own_text=False), [Setting("naive", 1, 1)])


def test_tokens_that_the_dump_says_are_impossible():
    """The sampler's law was another in the last bit: such tokens, drafted or not, cost no plan."""
    dump = random_dump()
    dump.rows.log_q[[3, 4], 0] = -np.inf
    dump.rows.log_p[4, 0] = -np.inf
    asked = planner.settings(planner.NAMES, [3], [3])
    choices = planner.plan(dump, asked, COSTS)
    rates = [choice.tokens_per_second for choice in choices]
    assert (
        len(choices) == len(planner.NAMES)
        and np.isfinite(rates).all()
        and rates == sorted(rates, reverse=True)
    )
    assert all(1 < choice.block_efficiency < 4 for choice in choices)


def test_the_end_of_a_text_is_no_rejection():
    """Drafts behind the last token of a text tell nothing: the chance at a depth is over the rounds that reach it."""
    equal = rounds.block_efficiency(np.ones((12, 4)), np.arange(12) % 3 == 0)
    np.testing.assert_equal(equal.by_position, (1, 1, 1, np.nan))
    third = rounds.block_efficiency(np.tile([[0.5, 0.2, 0.1]], (4, 1)), np.arange(4) % 2 == 0)
    np.testing.assert_allclose(third.by_position, (0.5, 0.4, np.nan))


def test_measured_rate_is_of_the_batch(monkeypatch):
    """Two texts of 3 and 5 tokens in 2 and 3 rounds of half a second each; plain steps take a fifth."""
    metrics = SimpleNamespace(histogram=np.array([[1, 1], [1, 2]]))
    run = SimpleNamespace(generation=SimpleNamespace(lengths=np.array([3, 5]), metrics=metrics))
    monkeypatch.setattr(
        check,
        "decoding",
        SimpleNamespace(
            stream=lambda keys, target, drafter, prompts, **_: None if drafter is None else run
        ),
    )
    monkeypatch.setattr(
        check, "seconds_a_round", lambda run: [0.5, 0.5, 0.7] if run else [0.2, 0.2, 9.0]
    )
    found = planner.generated(
        np.zeros(2),
        None,
        "drafter",
        [[0]],
        Setting("gls", 1, 1),
        batch=2,
        options=decoding.DecodeOptions(),
    )
    assert (found.block_efficiency, found.rounds) == (1.6, 5)
    assert (found.tokens_per_second, found.speedup) == (
        pytest.approx(2 * 1.6 / 0.5),
        pytest.approx(1.6 * 0.2 / 0.5),
    )
