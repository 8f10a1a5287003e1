"""Rounds along known texts: the same as those of decoding, and predictions without a formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import budget_shapes, decoding_runs, text_rounds, tree_budget
from experiments.decoding_runs import Setting
from experiments.text_rounds import Texts
from gls_jax import decoding, planner, schemes
from gls_jax.planner import conditional
from tests.schemes.scheme_trials import ALPHA

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCAB = 20


def bigram(params, tokens):
    return params[tokens]


@pytest.fixture
def models():
    """A target and a drafter near to it."""
    tables = 2 * jax.random.normal(jax.random.key(0), (2, VOCAB, VOCAB))
    target = decoding.from_function(bigram, tables[0], VOCAB)
    return target, decoding.from_function(bigram, tables[0] + 0.4 * tables[1], VOCAB)


@pytest.fixture
def texts(models):
    prompts = [[1, 2], [3], [5, 6, 7]]
    start = Texts(prompts, decoding_runs.request_keys(3, 3), 1.0, np.zeros((3, 0), np.int32))
    return start._replace(tokens=text_rounds.plain_tokens(models[0], start, new_tokens=24))


@pytest.mark.parametrize(
    ("scheme", "tree"),
    [("topk", decoding.BestFirstTree(6, 3)), ("gumbel_topk", (2, 2))],
    ids=str,
)
def test_replay_is_decoding(scheme, tree, models, texts):
    target, drafter = models
    setting = Setting("test", scheme, num_drafts=2, length=3, tree=tree)
    run = decoding_runs.start_run(target, drafter, texts.prompts, texts.keys, setting, 24)
    decoded = run.finish()
    np.testing.assert_array_equal(decoded.tokens, texts.tokens)
    recorded = text_rounds.recorded_target(texts, VOCAB)
    emitted, calls = text_rounds.counts_along(recorded, drafter, texts, setting, num_rounds=24)
    np.testing.assert_array_equal(emitted, [24] * 3)
    np.testing.assert_array_equal(calls, decoded.metrics.target_calls)
    assert calls.sum() < texts.tokens.size  # some drafts were accepted


@pytest.mark.parametrize("num_rounds", [5, 24])
def test_predicted_counts(num_rounds, models, texts):
    """Whether the likeliest tokens are accepted is no matter of noise: predictions are counts."""
    target, drafter = models
    checkpoint = type("Checkpoint", (), {"language_model": target})
    pairs = text_rounds.pairs_along(checkpoint, drafter, texts)
    predictor = text_rounds.Predictor(pairs, len(texts.prompts), num_rounds)
    predicted = predictor.counts(planner.Setting("topk", 2, 2, (2, 2)))
    setting = Setting("test", "topk", 2, length=2, tree=(2, 2))
    recorded = text_rounds.recorded_target(texts, VOCAB)
    replayed = text_rounds.counts_along(recorded, drafter, texts, setting, num_rounds)
    np.testing.assert_allclose(predicted, replayed, rtol=1e-5)
    # This tree has both candidates of every node.
    np.testing.assert_array_equal(predicted, predictor.ceiling("topk", 2, 2))
    if num_rounds == 5:
        assert (replayed[1] == 5).all()
    else:
        assert (replayed[0] == 24).all()


@pytest.mark.parametrize("other", ["gls", "naive"])
def test_estimated_kernels(other):
    """The estimate meets the formula of its scheme, and not that of another one."""
    num_positions = 200
    logits = jax.random.normal(jax.random.key(1), (2, num_positions, 6))
    log_p, log_q = np.asarray(jax.nn.log_softmax(jnp.stack([logits[0], logits.sum(0)])))
    estimated = text_rounds._estimated_kernels(schemes.get("gls"), log_p, log_q)
    exact = conditional.kernels(log_p, log_q, scheme=other, num_drafts=8)
    # Hits are binomial: the variance of an estimate is at most that of hits of probability q.
    variances = 1 / (text_rounds._NUM_TRIALS * np.exp(log_q[:, 0]))
    errors = (estimated[:, 1:, 0] - exact[:, 1:, 0]).sum(axis=0)
    deviations = np.abs(errors) / np.sqrt(variances.sum())
    limit = np.sqrt(2 * np.log(2 * 8 / ALPHA))
    assert (deviations < limit).all() == (other == "gls")


def test_shapes_are_chosen_by_the_other_half():
    class Predictor:
        def counts(self, setting):
            # The first shape is best for even texts, the second for odd ones.
            is_even = np.arange(4) % 2 == 0
            num_tokens = np.where(is_even == (setting.num_drafts == 1), 2.0, 1.0)
            return np.stack([num_tokens, np.ones(4)])

    texts = Texts([[1]] * 4, None, 1.0, np.zeros((4, 8), np.int32))
    counts = tree_budget._TemperatureRun(tree_budget.TreeBudget(), None, None, texts, None, None)
    settings = [planner.Setting("topk", 1, 2), planner.Setting("topk", 2, 1)]
    shape, (num_tokens, _) = counts._best_elsewhere(Predictor(), settings)
    assert shape == "2 x 1 or 1 x 2"
    assert num_tokens.tolist() == [1] * 4


@pytest.mark.parametrize("nodes", [8, 64])
def test_shapes_of_a_budget(nodes):
    trees = budget_shapes.static_trees("topk", nodes)
    assert len({tree.tree for tree in trees}) == len(trees) > 1
    for setting in trees:
        assert 7 * nodes / 8 <= setting.shape.num_nodes <= nodes
        assert list(setting.tree) == sorted(setting.tree, reverse=True)
    for setting in budget_shapes.chains("topk", nodes):
        assert setting.shape.num_nodes == min(nodes, 32 * setting.num_drafts)
