"""Predicted block efficiency is that of generation, on a language with easy and hard places that come in runs."""

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
        return distributions.own_texts(
            jax.random.key(1), target, [[0], [4]], distributions.Sampling(), **options
        )

    return distributions.write(
        folder,
        target,
        drafter,
        documents,
        distributions.Sampling(),
        num_positions=num_positions,
        context=LENGTH + 1,
        num_kept=TOKENS,
        facts={"own_text": True},
    )


def measured(setting, **options):
    keys = jax.random.split(jax.random.key(2), TEXTS)
    return planner.generated(
        keys,
        *models(),
        [[0], [4]],
        setting,
        batch=TEXTS,
        options=decoding.DecodeOptions(max_new_tokens=LENGTH, **options),
    )


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.scheme)
def test_predicted_is_measured(dump, setting):
    (predicted,) = planner.efficiencies(dump, [setting])
    found = measured(setting)
    error = np.hypot(predicted.standard_error, found.standard_error)
    assert error < 0.015 * found.block_efficiency
    assert abs(predicted.mean - found.block_efficiency) < SIGMAS * error
    if (
        setting.scheme == "gls"
    ):  # what acceptances know of the tokens matters: their plain product is caught
        p, q = dump.pairs()
        each = jax.vmap(lambda p, q: schemes.get("gls").acceptance(p, q, 3))(p, q)
        product = 1 + np.sum(np.cumprod(np.full(4, np.mean(each))))
        assert abs(product - found.block_efficiency) > SIGMAS * error


def test_rounds_follow_one_another():
    """A hard position is where rounds begin: half of the rounds, though one position in three."""
    reach = np.tile(np.array([[1.0], [0.0], [0.0]]), (100, 1))  # 2 tokens, then 1, then 2, ...
    found = rounds.block_efficiency(reach, np.arange(300) == 0)
    assert found.mean == pytest.approx(1.5, abs=0.01) and found.by_position[0] == pytest.approx(
        0.5, abs=0.01
    )
    two = np.isin(np.arange(300), [0, 150])
    assert rounds.block_efficiency(np.tile([[0.5, 0.25]], (300, 1)), two).mean == pytest.approx(
        1.75, abs=0.02
    )


def test_texts_that_end_early(tmp_path):
    """Half of the texts are no longer than a round: what is accepted behind a stop token is not delivered."""
    setting, stops = SETTINGS[0], [1, 2]
    dump = dumped(
        tmp_path, TEXTS * LENGTH, stop_tokens=stops
    )  # the programs of the longer texts do
    assert np.median(np.diff(np.flatnonzero(dump.rows.begins))) <= setting.draft_length + 1
    (predicted,) = planner.efficiencies(dump, [setting])
    found = measured(setting, stop_tokens=stops)
    error = np.hypot(predicted.standard_error, found.standard_error)
    assert (
        abs(predicted.mean - found.block_efficiency) < SIGMAS * error < 0.1 * found.block_efficiency
    )


def test_a_round_ends_with_its_document():
    begins = np.array([True, False, True, False])
    assert (
        rounds.block_efficiency(np.ones((4, 3)), begins).mean == 2
    )  # one round a document of two tokens


def test_figures_by_hand():
    """After 1, 2 or 3 tokens, 2 or 1 more, each round to the same place; the last ends where the document does."""
    reach = np.array([[0.5, 0.25], [1, 0], [0, 0], [1, 1], [0, 0], [0, 0]])
    found = rounds.block_efficiency(reach, np.arange(6) == 0)
    begun = [1, 0.5, 0.25, 1]
    accepted = [0.5 + 0.5 * 1 + 1, 0.25 + 1]
    assert found.mean == pytest.approx(6 / sum(begun)) and np.isnan(found.standard_error)
    assert found.by_position == pytest.approx((accepted[0] / sum(begun), accepted[1] / accepted[0]))


def test_standard_error_by_hand():
    sizes = [1, 2, 3]
    found = rounds.block_efficiency(
        np.ones((6, 2)), np.isin(np.arange(6), [0, 1, 3])
    )  # one round a document
    assert found.mean == 2 and found.standard_error == pytest.approx(
        statistics.stdev(sizes) / math.sqrt(3)
    )
    reach = np.array([[1.0], [1.0], [0.0], [0.0]])  # two tokens in one round, and in two
    found = rounds.block_efficiency(reach, np.array([True, False, True, False]))
    assert found.mean == pytest.approx(4 / 3) and found.standard_error == pytest.approx(4 / 9)


KERNELS = np.tril(np.random.default_rng(3).uniform(0.2, 1, (7, 4, 4)))  # of at most three chains
KERNELS = KERNELS / KERNELS.sum(axis=2, keepdims=True)
RATIO = np.array([0.5, 3.0, 0.4, 1.8, 2.5, 0.3, 1.4])
WIDTHS = (3, 1, 2)


def chains(at, depth, num_drafts=2):
    """Each way that the chains in play become fewer: its chance, and the drafts that are accepted."""
    for numbers in itertools.product(range(num_drafts + 1), repeat=depth):
        steps = itertools.pairwise([num_drafts, *numbers])
        yield (
            math.prod(KERNELS[at + d, j, k] for d, (j, k) in enumerate(steps)),
            np.count_nonzero(numbers),
        )


def tree(at, depth):
    for hits in itertools.product([False, True], repeat=depth):
        lost = [KERNELS[at + d, width, 0] for d, width in enumerate(WIDTHS[:depth])]
        each = [1 - miss if hit else miss for hit, miss in zip(hits, lost, strict=True)]
        yield math.prod(each), np.sum(np.cumprod(hits, dtype=int))


def block(at, depth):
    """As in the paper: a prefix has weight ``w = min(1, w q / p)``, and was drafted ``p / q`` times as often."""
    weights = itertools.accumulate(
        RATIO[at : at + depth], lambda weight, ratio: min(1, weight / ratio), initial=1
    )
    drafted = np.cumprod([1, *RATIO[at : at + depth]])
    accepted = [weight * ratio for weight, ratio in zip(weights, drafted, strict=True)]
    for count, (more, most) in enumerate(itertools.pairwise([*accepted, 0])):
        yield more - most, count


def ways(outcomes, at, end):
    """Each way that rounds lead from `at` to the end of the document: its chance, and their number."""
    if at == end:
        yield 1.0, 0
        return
    for chance, accepted in outcomes(at, min(len(WIDTHS), end - at - 1)):
        for rest, number in ways(outcomes, at + accepted + 1, end):
            yield chance * rest, number + 1


@pytest.mark.parametrize(
    ("outcomes", "reach"),
    [
        (chains, partial(rounds.reach_of_chains, KERNELS, 2, 3)),
        (tree, partial(rounds.reach_of_tree, KERNELS, WIDTHS)),
        (block, partial(block_scheme.survival_from_ratios, RATIO, 3)),
    ],
    ids=["chains", "tree", "block"],
)
def test_every_way_that_rounds_can_go(outcomes, reach):
    """Documents of five tokens and of two, enumerated."""
    found = rounds.block_efficiency(reach(), np.isin(np.arange(7), [0, 5]))
    number = [
        sum(chance * number for chance, number in ways(outcomes, *ends))
        for ends in ((0, 5), (5, 7))
    ]
    mean = 7 / sum(number)
    surplus = [5 - mean * number[0], 2 - mean * number[1]]
    assert found.mean == pytest.approx(mean)
    assert found.standard_error == pytest.approx(
        statistics.stdev(surplus) * math.sqrt(2) / sum(number)
    )
