"""Predicted block efficiency is that of generation, on a language with easy and hard places that come in runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import decoding, laws, planner, schemes
from gls_jax.planner import rounds

TOKENS, TEXTS, LENGTH = 6, 300, 40
SETTINGS = (
    planner.Setting("gls", 3, 4),
    planner.Setting("gumbel_topk", 3, 3, (3, 2, 1)),
    planner.Setting("block", 1, 4),
)
SIGMAS = 6  # 2e-9 a setting


def bigram(table):
    return decoding.from_function(_read, jnp.asarray(np.log(table), jnp.float32), TOKENS)


def _read(params, tokens):
    return params[tokens]


def models():
    """After tokens 0-2 the drafter is nearly right, and 0-2 mostly follow; after 3-5 it is not, and 3-5 mostly do."""
    rng = np.random.default_rng(2)
    q, other = rng.dirichlet(np.ones(TOKENS), (2, TOKENS))
    easy = np.arange(TOKENS) < 3
    q = q * np.where(easy[:, None] == easy, 8, 1)
    q, p = q / q.sum(1, keepdims=True), np.where(easy[:, None], 0.95, 0.25)
    return bigram(q), bigram(p * q + (1 - p) * other)


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return dumped(tmp_path_factory.mktemp("dump"), TEXTS * LENGTH)


def dumped(folder, num_positions, stop_tokens=()):
    target, drafter = models()

    def documents(first):
        options = {"length": LENGTH, "batch": TEXTS, "first": first, "stop_tokens": stop_tokens}
        return laws.own_texts(jax.random.key(1), target, [[0], [4]], laws.Sampling(), **options)

    return laws.write(
        folder,
        target,
        drafter,
        documents,
        laws.Sampling(),
        num_positions=num_positions,
        context=LENGTH + 1,
        num_kept=TOKENS,
        facts={"own_text": True},
    )


def measured(setting, **options):
    keys = jax.random.split(jax.random.key(2), TEXTS)
    return planner.generated(keys, *models(), [[0], [4]], setting, batch=TEXTS, max_new_tokens=LENGTH, **options)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.scheme)
def test_predicted_is_measured(dump, setting):
    (predicted,) = planner.efficiencies(dump, [setting])
    found = measured(setting)
    error = np.hypot(predicted.standard_error, found.standard_error)
    assert error < 0.015 * found.block_efficiency
    assert abs(predicted.mean - found.block_efficiency) < SIGMAS * error
    if setting.scheme == "gls":  # what acceptances know of the tokens matters: their plain product is caught
        p, q = dump.pairs()
        each = jax.vmap(lambda p, q: schemes.get("gls").acceptance(p, q, 3))(p, q)
        product = 1 + np.sum(np.cumprod(np.full(4, np.mean(each))))
        assert abs(product - found.block_efficiency) > SIGMAS * error


def test_rounds_follow_one_another():
    """A hard position is where rounds begin: half of the rounds, though one position in three."""
    reach = np.tile(np.array([[1.0], [0.0], [0.0]]), (100, 1))  # 2 tokens, then 1, then 2, ...
    found = rounds.block_efficiency(reach, np.arange(300) == 0)
    assert found.mean == pytest.approx(1.5, abs=0.01) and found.by_position[0] == pytest.approx(0.5, abs=0.01)
    two = np.isin(np.arange(300), [0, 150])
    assert rounds.block_efficiency(np.tile([[0.5, 0.25]], (300, 1)), two).mean == pytest.approx(1.75, abs=0.02)


def test_texts_that_end_early(tmp_path):
    """Half of the texts are no longer than a chain: what is accepted behind a stop token is not delivered."""
    dump = dumped(tmp_path, 4000, stop_tokens=[2])
    assert np.median(np.diff(np.flatnonzero(dump.rows.begins))) <= 8
    setting = planner.Setting("gls", 3, 8)
    (predicted,) = planner.efficiencies(dump, [setting])
    found = measured(setting, stop_tokens=[2])
    error = np.hypot(predicted.standard_error, found.standard_error)
    assert abs(predicted.mean - found.block_efficiency) < SIGMAS * error < 0.12 * found.block_efficiency


def test_a_round_ends_with_its_document():
    begins = np.array([True, False, True, False])
    assert rounds.block_efficiency(np.ones((4, 3)), begins).mean == 2  # one round a document of two tokens
