"""Results do not depend on the shape of work: both forms of every algorithm, on the CPU.

Integers are compared exactly. Exact values and gradients may differ by rounding.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import (
    compression,
    couplings,
    decoding,
    loops,
    losses,
    races,
    schemes,
    trials,
    work_shape,
)
from gls_jax.distributions.pairs import Pairs
from gls_jax.exact import batched, ratio_order
from gls_jax.planner import conditional
from gls_jax.studies import acceptance_study
from tests.problems import PROBLEMS, logs

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = races.new_key(5)
SHAPES = [("cpu", None), ("cuda", None)]
SMALL_BUDGET = ("tpu", 2**20)
ROUNDING = 2e-6


def pairs(num_pairs, num_categories, spread=2.0):
    logits = spread * jax.random.normal(
        races.new_key(num_categories), (2, num_pairs, num_categories)
    )
    return jax.nn.log_softmax(logits)


def in_every_shape(function, *more_shapes):
    """The results of the function in the shape of a CPU, and in that of an accelerator."""
    results = []
    for platform, budget in [*SHAPES, *more_shapes]:
        with work_shape.using(platform, budget):
            results.append(jax.tree.map(np.asarray, function()))
    return results


def assert_same(function, *more_shapes):
    narrow, *wide = in_every_shape(function, *more_shapes)
    for result in wide:
        jax.tree.map(np.testing.assert_array_equal, narrow, result)


def assert_close(function, tolerance=ROUNDING):
    narrow, *wide = in_every_shape(function)
    for result in wide:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), narrow, result
        )


def test_the_shapes_differ():
    with work_shape.using("cpu") as narrow, work_shape.using("cuda") as wide:
        assert work_shape.current() == wide != narrow
        with work_shape.using(memory_budget=2**20) as small:
            assert small.is_wide and small.trial_numbers < wide.trial_numbers
    assert work_shape.current() == work_shape.CPU
    with pytest.raises(ValueError, match=r"memory_budget: expected at least 2\^20 bytes, got 1000"):
        work_shape.accelerator(1000)


def test_first_arrivals():
    """Also with impossible categories, ties, NaN, and nothing that can arrive."""
    log_p, log_q = pairs(1, 700)[:, 0]
    strange = log_p.at[:300].set(-jnp.inf).at[400].set(jnp.nan)
    log_weights = (log_p, log_q, strange, jnp.full(700, -jnp.inf), jnp.tile(log_q, (3, 1)))
    assert_same(lambda: jax.jit(lambda: races.first_arrivals(KEY, 3, *log_weights))())


def test_sorting():
    values = jax.random.normal(KEY, (999,)).round(1)
    values = values.at[:5].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf, -0.0, 0.0]))
    assert_same(lambda: ratio_order.ascending(values))
    assert (ratio_order.ascending(values) == jnp.argsort(values + 0)).all()


@pytest.mark.parametrize("size", [1, 2, 3, 64, 1000])
def test_sums_for_inversion_never_decrease(size):
    """And a weight of 0 has no interval."""
    weights = jnp.exp(5 * jax.random.normal(KEY, (size, 2)))
    weights = weights.at[1::3].set(0)
    sums = np.asarray(ratio_order.nondecreasing_sum(weights))
    steps = np.diff(sums, axis=0)
    assert (steps >= 0).all() and (steps[0::3] == 0).all()
    exact = np.cumsum(np.asarray(weights, np.float64), axis=0)
    np.testing.assert_allclose(sums, exact, rtol=1e-6)


@pytest.mark.parametrize("name", schemes.NAMES)
def test_trials(name):
    """The same trials are accepted, by noise and by inversion, for many pairs and for one."""
    scheme = schemes.get(name)
    lengths = (1,) if scheme.max_drafts == 1 else (1, 3)
    methods = ["noise"]
    if scheme.trials is not None and scheme.trials.inversion is not None:
        methods.append("inversion")
    for method in methods:
        log_p, log_q = pairs(5, 40)
        assert_same(
            lambda log_p=log_p, log_q=log_q, method=method: trials.sweep(
                KEY, log_p, log_q, scheme=name, num_drafts=lengths, num_trials=150, method=method
            ),
            SMALL_BUDGET,
        )


def test_trials_of_a_vocabulary():
    log_p, log_q = pairs(2, 5000)
    for name in ("gls", "gumbel_topk"):
        assert_same(
            lambda name=name: trials.sweep(
                KEY, log_p, log_q, scheme=name, num_drafts=(4,), num_trials=300
            )
        )


def test_trials_do_not_depend_on_the_budget():
    log_p, log_q = pairs(3, 300)

    def run(budget):
        options = {"scheme": "gls", "num_drafts": (4,), "num_trials": 500}
        return trials.sweep(KEY, log_p, log_q, **options, memory_budget=budget).mean.tolist()

    with work_shape.using("cuda"):
        assert run(2**20) == run(2**30)


@pytest.mark.parametrize(
    ("name", "num_categories", "num_drafts"),
    [
        ("gls", 20, 8),
        ("gls", 5000, 8),
        ("gumbel_topk", 20, 8),
        ("gumbel_topk", 600, 8),
        ("gumbel_topk", 20_000, 8),
        ("specinfer_wor", 10, 6),
        ("weighted_importance", 4096, 2),
    ],
)
def test_memory_of_exact_acceptances(name, num_categories, num_drafts):
    """It stays within the budget, however many pairs there are."""
    budget, num_pairs = 2**28, 4000
    log_probs = jax.ShapeDtypeStruct((num_pairs, num_categories), jnp.float32)
    with work_shape.using("cuda", budget) as shape:
        pairs_at_once = batched.pairs_per_step(num_pairs, num_categories, shape)

        def curves(log_p, log_q):
            def curve(pair):
                return schemes.get(name).acceptance_curve(*pair, (num_drafts,))

            return loops.map_in_batches(curve, (log_p, log_q), pairs_at_once)

        compiled = jax.jit(curves).lower(log_probs, log_probs).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < budget
    assert 60 * pairs_at_once * num_categories > 2**17  # with the nodes of the quadrature: wide


@pytest.mark.parametrize("name", schemes.NAMES)
def test_exact_acceptances(name):
    scheme = schemes.get(name)
    # `weighted_importance` takes N^2.
    for num_categories in (10, 600) if name == "weighted_importance" else (10, 600, 3000):
        most_drafts = scheme.max_drafts or 5
        lengths = [
            k
            for k in (1, 2, 5)
            if k <= most_drafts and scheme.acceptance_limit(num_categories, k) is None
        ]
        if not lengths:
            continue
        log_p, log_q = pairs(3, num_categories)
        assert_close(
            lambda log_p=log_p, log_q=log_q, lengths=lengths: batched.acceptance_curves(
                scheme, log_p, log_q, lengths
            )
        )


@pytest.mark.parametrize("name", ["poisson", "gumbel_topk"])
def test_memory_of_kernels(name):
    budget = 2**28
    log_probs = jax.ShapeDtypeStruct((10_000, 129), jnp.float32)
    with work_shape.using("cuda", budget) as shape:
        compiled = conditional._kernels.lower(
            log_probs, log_probs, scheme=name, num_drafts=8, shape=shape
        ).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < budget


def test_edges_of_exact_acceptances():
    for p, q in PROBLEMS.values():
        for name in ("gls", "gumbel_topk", "poisson"):
            scheme = schemes.get(name)
            assert_close(
                lambda p=p, q=q, scheme=scheme: scheme.acceptance_curve(logs(p), logs(q), (1, 4))
            )


@pytest.mark.parametrize("name", ["gls", "gumbel_topk", "poisson"])
def test_losses_and_their_gradients(name):
    draft, target = pairs(7, 1000)

    def loss(draft, target):
        return losses.acceptance(draft, target, scheme=name, num_drafts=4).sum()

    assert_close(lambda: jax.jit(jax.value_and_grad(loss, (0, 1)))(draft, target), tolerance=1e-5)


def test_drafts_of_separate_distributions():
    log_p, log_q = pairs(4, 50)
    assert_close(lambda: schemes.get("gls").acceptance(log_p, log_q[0], 4))


@pytest.mark.parametrize("name", conditional.NAMES)
def test_kernels_of_the_planner(name):
    num_drafts = min(schemes.get(name).max_drafts or 3, 3)
    log_p, log_q = pairs(70, 20)
    assert_close(lambda: conditional.kernels(log_p, log_q, scheme=name, num_drafts=num_drafts))


def test_darts():
    log_p, log_q = pairs(1, 9000)[:, 0]
    assert_same(lambda: couplings.weighted_minhash(KEY, log_p, log_q))
    assert_same(lambda: couplings.dart_protocol(KEY, log_p, log_q, 0.01))


@pytest.mark.parametrize("search", ["ordered", "dense"])
def test_codec(search):
    code = compression.ListCode(num_decoders=3, num_candidates=2**10, num_bins=16, search=search)
    means = 2 * jax.random.normal(KEY, (200, 1))
    keys = compression.symbol_keys(KEY, 200)
    rows = compression.Normal(means, jnp.full_like(means, 0.01))
    wide_rows = compression.Normal(means + 0.1, jnp.full_like(means, 0.3))

    def to_bins_and_back():
        density = compression.gaussian_density
        sent = compression.encode(code, keys, density, (), rows)
        received = compression.decode(code, keys, sent.message, 1, density, (), wide_rows)
        return sent, received

    assert_same(to_bins_and_back)


@pytest.mark.parametrize("name", [*schemes.NAMES, *schemes.PATH_NAMES])
def test_verification_of_a_batch_of_trees(name):
    """Trees of several depths, some with chains that repeat one another."""
    scheme = schemes.get(name)
    num_chains = min(scheme.max_drafts or 3, 3)
    num_rows, num_categories, length = 40, 5, 3
    log_p, log_q = pairs(1, num_categories, spread=0.5)[:, 0]

    def one_row(key):
        drafts = jnp.stack(
            [
                scheme.propose(scheme.draft_key(key, 0, depth, 0), log_p, num_chains)
                for depth in range(length)
            ],
            axis=1,
        )
        tree = schemes.chains(drafts, ranked=scheme.ranked)
        nodes = tree.tokens.shape[0]
        return scheme.verify_tree(
            key, 0, tree, jnp.tile(log_p, (nodes, 1)), jnp.tile(log_q, (nodes + 1, 1))
        )

    keys = jax.random.split(KEY, num_rows)
    assert_same(lambda: jax.jit(jax.vmap(one_row))(keys))


@pytest.mark.parametrize("interrupted_after", [None, 1])
def test_studies(tmp_path, monkeypatch, interrupted_after):
    """Blocks computed one by one and all in one call, at once or resumed; the last is not full."""
    study = acceptance_study.Study(("gls", "naive"), (1, 3), 50, seed=1)
    log_p, log_q = map(np.asarray, pairs(70, 12))
    study_pairs = Pairs(log_p=log_p, log_q=log_q)

    def columns(folder, **options):
        rows = acceptance_study.run(study, study_pairs, folder, **options)
        return [(row.simulated, row.exact, row.bound or 0) for row in rows]

    with work_shape.using("cpu"):
        narrow = np.array(columns(tmp_path / "narrow"))
    with work_shape.using("cuda"):
        wide = np.array(columns(tmp_path / "wide"))
    np.testing.assert_array_equal(narrow[:, 0], wide[:, 0])
    np.testing.assert_allclose(narrow, wide, rtol=0, atol=ROUNDING)
    if interrupted_after is None:
        return

    # The second call of a run with calls of one block is interrupted; the rest is one call.
    compute, calls = acceptance_study._compute_blocks, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) > interrupted_after:
            raise KeyboardInterrupt
        return compute(*arguments)

    wide_shape = work_shape.accelerator()
    with monkeypatch.context() as patch, work_shape.using("cuda"):
        patch.setattr(acceptance_study, "_compute_blocks", interrupted)
        patch.setattr(
            work_shape, "current", lambda: dataclasses.replace(wide_shape, study_blocks=2)
        )
        with pytest.raises(KeyboardInterrupt):
            columns(tmp_path / "cut")
    with work_shape.using("cuda"):
        columns(tmp_path / "cut", resume=True)
    for name in ("cells.npz", "acceptance.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "wide" / name).read_bytes()


def test_texts():
    """Prompts longer than what is read in one call, on a CPU, and texts that end early."""
    table = 2 * jax.random.normal(KEY, (11, 11))
    model = decoding.from_function(lambda params, tokens: params[tokens], table, 11)
    prompts = [[t % 11 for t in range(300)], [1, 2]]

    def texts():
        found = decoding.generate(
            KEY,
            model,
            model,
            prompts,
            scheme="gls",
            num_drafts=2,
            draft_length=2,
            max_new_tokens=6,
            stop_tokens=(3,),
        )
        return found.tokens, found.lengths, found.metrics.block_efficiency

    assert_same(texts)
