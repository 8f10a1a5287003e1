"""Predicted block efficiency is that of generation, on a language with easy and hard positions that come in runs."""

import itertools
import math
import statistics
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import decoding, distributions, planner, schemes
from gls_jax.planner import rounds
from gls_jax.schemes import block as block_scheme

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOKENS, TEXTS, LENGTH = 6, 300, 40
SETTINGS = (
    planner.Setting("gls", 3, 4),
    planner.Setting("gumbel_topk", 3, 3, (3, 2, 1)),
    planner.Setting("block", 1, 4),
)
SIGMAS = 6  # 2e-9 a setting


def bigram(table):
    return decoding.from_function(read_row, jnp.asarray(np.log(table), jnp.float32), TOKENS)


def read_row(params, tokens):
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
    return make_dump(tmp_path_factory.mktemp("dump"), TEXTS * LENGTH)


def make_dump(folder, num_positions, stop_tokens=()):
    target, drafter = models()

    def documents(first):
        return distributions.sampled_texts(
            jax.random.key(1),
            target,
            [[0], [4]],
            distributions.Sampling(),
            length=LENGTH,
            batch=TEXTS,
            first=first,
            stop_tokens=stop_tokens,
        )

    return distributions.write(
        folder,
        target,
        drafter,
        documents,
        distributions.Sampling(),
        num_positions=num_positions,
        context_length=LENGTH + 1,
        num_kept=TOKENS,
        metadata={"own_text": True},
    )


def measure(setting, **options):
    keys = jax.random.split(jax.random.key(2), TEXTS)
    return planner.measure_generation(
        keys,
        *models(),
        [[0], [4]],
        setting,
        batch=TEXTS,
        options=decoding.DecodeOptions(max_new_tokens=LENGTH, **options),
    )


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.scheme)
def test_prediction_agrees_with_measurement(dump, setting):
    (predicted,) = planner.efficiencies(dump, [setting])
    measured = measure(setting)
    error = np.hypot(predicted.standard_error, measured.standard_error)
    assert error < 0.015 * measured.block_efficiency
    assert abs(predicted.mean - measured.block_efficiency) < SIGMAS * error
    # Acceptances depend on the tokens: the plain product of mean acceptances is told apart.
    if setting.scheme == "gls":
        p, q = dump.pairs()
        acceptances = jax.vmap(lambda p, q: schemes.get("gls").acceptance(p, q, 3))(p, q)
        product = 1 + np.sum(np.cumprod(np.full(4, np.mean(acceptances))))
        assert abs(product - measured.block_efficiency) > SIGMAS * error


def test_rounds_follow_one_another():
    """A hard position is where rounds begin: half of the rounds, though one position in three."""
    survival = np.tile(np.array([[1.0], [0.0], [0.0]]), (100, 1))  # 2 tokens, then 1, then 2, ...
    efficiency = rounds.block_efficiency(survival, np.arange(300) == 0)
    assert efficiency.mean == pytest.approx(1.5, abs=0.01)
    assert efficiency.by_position[0] == pytest.approx(0.5, abs=0.01)
    two_documents = np.isin(np.arange(300), [0, 150])
    efficiency = rounds.block_efficiency(np.tile([[0.5, 0.25]], (300, 1)), two_documents)
    assert efficiency.mean == pytest.approx(1.75, abs=0.02)


def test_drafts_beyond_a_stop_token_are_not_counted(tmp_path):
    """Half of the texts are no longer than a round."""
    setting, stops = SETTINGS[0], [1, 2]
    # As many positions at most as in the longer texts: the same compiled programs.
    dump = make_dump(tmp_path, TEXTS * LENGTH, stop_tokens=stops)
    assert np.median(np.diff(np.flatnonzero(dump.rows.begins))) <= setting.draft_length + 1
    (predicted,) = planner.efficiencies(dump, [setting])
    measured = measure(setting, stop_tokens=stops)
    error = np.hypot(predicted.standard_error, measured.standard_error)
    assert abs(predicted.mean - measured.block_efficiency) < SIGMAS * error
    assert SIGMAS * error < 0.1 * measured.block_efficiency


def test_round_ends_with_its_document():
    begins = np.array([True, False, True, False])
    # One round a document of two tokens.
    assert rounds.block_efficiency(np.ones((4, 3)), begins).mean == 2


def test_efficiency_by_hand():
    """Rounds from 0 reach 1, 2 or 3, those from 1 and 2 reach 3, and from there the end of the document."""
    survival = np.array([[0.5, 0.25], [1, 0], [0, 0], [1, 1], [0, 0], [0, 0]])
    efficiency = rounds.block_efficiency(survival, np.arange(6) == 0)
    begin_probs = [1, 0.5, 0.25, 1]
    accepted = [0.5 + 0.5 * 1 + 1, 0.25 + 1]
    assert efficiency.mean == pytest.approx(6 / sum(begin_probs))
    assert np.isnan(efficiency.standard_error)
    by_position = (accepted[0] / sum(begin_probs), accepted[1] / accepted[0])
    assert efficiency.by_position == pytest.approx(by_position)


def test_standard_error_by_hand():
    lengths = [1, 2, 3]
    # One round a document.
    efficiency = rounds.block_efficiency(np.ones((6, 2)), np.isin(np.arange(6), [0, 1, 3]))
    assert efficiency.mean == 2
    assert efficiency.standard_error == pytest.approx(statistics.stdev(lengths) / math.sqrt(3))
    survival = np.array([[1.0], [1.0], [0.0], [0.0]])  # two tokens in one round, and in two
    efficiency = rounds.block_efficiency(survival, np.array([True, False, True, False]))
    assert efficiency.mean == pytest.approx(4 / 3)
    assert efficiency.standard_error == pytest.approx(4 / 9)


KERNELS = np.tril(np.random.default_rng(3).uniform(0.2, 1, (7, 4, 4)))  # of at most three chains
KERNELS = KERNELS / KERNELS.sum(axis=2, keepdims=True)
RATIO = np.array([0.5, 3.0, 0.4, 1.8, 2.5, 0.3, 1.4])
WIDTHS = (3, 1, 2)


def chains(at, depth, num_drafts=2):
    """Each way that the active chains become fewer: its probability, and how many drafts are accepted."""
    for numbers in itertools.product(range(num_drafts + 1), repeat=depth):
        steps = itertools.pairwise([num_drafts, *numbers])
        yield (
            math.prod(KERNELS[at + d, j, k] for d, (j, k) in enumerate(steps)),
            np.count_nonzero(numbers),
        )


def tree(at, depth):
    for accepted in itertools.product([False, True], repeat=depth):
        probability = 1.0
        for d, is_accepted in enumerate(accepted):
            rejection = KERNELS[at + d, WIDTHS[d], 0]
            probability *= 1 - rejection if is_accepted else rejection
        yield probability, np.sum(np.cumprod(accepted, dtype=int))


def block(at, depth):
    """As in the paper: a prefix has weight ``w = min(1, w q / p)``, and was drafted ``p / q`` times as often."""
    weights = itertools.accumulate(
        RATIO[at : at + depth], lambda weight, ratio: min(1, weight / ratio), initial=1
    )
    drafted = np.cumprod([1, *RATIO[at : at + depth]])
    accepted = [weight * ratio for weight, ratio in zip(weights, drafted, strict=True)]
    for count, (at_least, more) in enumerate(itertools.pairwise([*accepted, 0])):
        yield at_least - more, count


def ways(outcomes, at, end):
    """Each way that rounds lead from `at` to the end of the document: its probability, and their number."""
    if at == end:
        yield 1.0, 0
        return
    for probability, accepted in outcomes(at, min(len(WIDTHS), end - at - 1)):
        for rest, number in ways(outcomes, at + accepted + 1, end):
            yield probability * rest, number + 1


@pytest.mark.parametrize(
    ("outcomes", "survival"),
    [
        (chains, partial(rounds.chain_survival, KERNELS, 2, 3)),
        (tree, partial(rounds.tree_survival, KERNELS, WIDTHS)),
        (block, partial(block_scheme.survival_from_ratios, RATIO, 3)),
    ],
    ids=["chains", "tree", "block"],
)
def test_efficiency_agrees_with_enumeration_of_all_rounds(outcomes, survival):
    """Documents of five tokens and of two, enumerated."""
    efficiency = rounds.block_efficiency(survival(), np.isin(np.arange(7), [0, 5]))
    first = sum(probability * number for probability, number in ways(outcomes, 0, 5))
    second = sum(probability * number for probability, number in ways(outcomes, 5, 7))
    mean = 7 / (first + second)
    residuals = [5 - mean * first, 2 - mean * second]
    assert efficiency.mean == pytest.approx(mean)
    standard_error = statistics.stdev(residuals) * math.sqrt(2) / (first + second)
    assert efficiency.standard_error == pytest.approx(standard_error)
