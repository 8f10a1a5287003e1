import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import schemes, trials
from gls_jax.trials import trial_loop
from tests.problems import PROBLEMS, logs

KEY = jax.random.key(3)
P, Q = (logs(law) for law in PROBLEMS["plain"])
LAWS_P = np.stack([logs(p) for p, _ in PROBLEMS.values()])
LAWS_Q = np.stack([logs(q) for _, q in PROBLEMS.values()])


def estimate(num_trials=5000, scheme="gls", num_drafts=3, **knobs):
    return trials.acceptance(
        KEY, P, Q, scheme=scheme, num_drafts=num_drafts, num_trials=num_trials, **knobs
    )


def test_trials_are_those_of_the_scheme():
    """Trial t is `propose` and `verify` under `fold_in(key, t)`: the count, not only its law."""
    scheme = schemes.get("gls")

    def trial(index):
        key = jax.random.fold_in(KEY, index)
        drafts = scheme.propose(key, P, 3)
        return jnp.any(drafts == scheme.verify(key, drafts, P, Q))

    hits = int(jax.vmap(trial)(jnp.arange(5000)).sum())
    got = estimate()
    assert float(got.mean) == pytest.approx(hits / 5000, abs=1e-7)
    rate = (hits + 1) / 5002
    assert float(got.standard_error) == pytest.approx(np.sqrt(rate * (1 - rate) / 5000), rel=1e-5)
    assert int(got.num_trials) == 5000


def forget():
    """The chunk is a constant of both programs, and the outer one holds the inner one's trace."""
    trial_loop._count_in_shares.clear_cache()
    trial_loop.count_accepted.clear_cache()


@pytest.mark.parametrize(("chunk", "call"), [(7, 1), (2**22, 2**30)])
def test_chunks_do_not_change_the_count(monkeypatch, chunk, call):
    whole = {name: float(estimate(scheme=name, num_drafts=1).mean) for name in ("gls", "single")}
    monkeypatch.setattr(trial_loop, "_NUMBERS_PER_CHUNK", chunk)
    monkeypatch.setattr(trial_loop, "_NOISE_PER_CALL", call)
    forget()
    for name, mean in whole.items():
        assert float(estimate(scheme=name, num_drafts=1).mean) == mean
    forget()


@pytest.mark.parametrize("scheme", ["gls", "gls_strong", "poisson", "gumbel_topk", "naive"])
def test_sweep_is_its_cells(scheme):
    got = trials.sweep(KEY, LAWS_P, LAWS_Q, scheme=scheme, num_drafts=(1, 4, 2), num_trials=300)
    assert got.mean.shape == got.standard_error.shape == (len(PROBLEMS), 3)
    for m in (0, 5, 11):
        for c, k in enumerate((1, 4, 2)):
            cell = trials.acceptance(
                jax.random.fold_in(KEY, m),
                LAWS_P[m],
                LAWS_Q[m],
                scheme=scheme,
                num_drafts=k,
                num_trials=300,
            )
            assert float(cell.mean) == float(got.mean[m, c])


def test_sweep_takes_a_key_a_pair_and_diverse_laws():
    keys = jax.vmap(lambda m: jax.random.fold_in(KEY, m))(jnp.arange(len(PROBLEMS)))
    one, many = (
        trials.sweep(key, LAWS_P, LAWS_Q, scheme="gls", num_drafts=(2,), num_trials=100)
        for key in (KEY, keys)
    )
    np.testing.assert_array_equal(one.mean, many.mean)
    rows = np.repeat(LAWS_P[:, None], 2, axis=1)
    diverse = trials.sweep(KEY, rows, LAWS_Q, scheme="gls", num_drafts=(1, 2), num_trials=100)
    np.testing.assert_array_equal(diverse.mean[:, 1], one.mean[:, 0])


def test_thousands_of_cells_in_one_call():
    """2,000 pairs x 3 schemes of lists; one compilation, and another number of trials adds none."""
    laws = jax.nn.log_softmax(jax.random.normal(KEY, (2, 2000, 5)))
    got = trials.sweep(KEY, *laws, scheme="gls", num_drafts=(1, 2, 4), num_trials=50)
    compiled = trial_loop._count_in_shares._cache_size()
    again = trials.sweep(KEY, *laws, scheme="gls", num_drafts=(1, 2, 4), num_trials=51)
    assert trial_loop._count_in_shares._cache_size() == compiled
    exact = jax.vmap(lambda p, q: schemes.get("gls").acceptance_curve(p, q, (1, 2, 4)))(*laws)
    for estimate, count in ((got, 50), (again, 51)):
        error = np.sqrt(np.asarray(exact * (1 - exact)).sum(0) / count) / 2000
        assert (abs(np.asarray(estimate.mean - exact).mean(0)) < 6 * error).all()  # 2e-9 a cell


def test_progress_and_memory():
    """Progress ends at the total; a chunk's memory does not know how many trials are asked for."""
    seen = []
    estimate(num_trials=1000, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (1000, 1000) and all(a < b for (a, _), (b, _) in itertools.pairwise(seen))
    laws = jax.ShapeDtypeStruct((1, 1000), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(KEY, 1))
    plan = trial_loop.Plan(schemes.get("gls"), num_drafts=(8,), method="noise")
    counter = trial_loop.count_accepted.lower(keys, laws, laws, 0, 2**30, plan=plan).compile()
    assert counter.memory_analysis().temp_size_in_bytes < 2**23


def test_under_jit():
    traced = jax.jit(
        lambda p, q: trials.acceptance(KEY, p, q, scheme="gls", num_drafts=3, num_trials=5000).mean
    )
    assert float(traced(P, Q)) == pytest.approx(float(estimate().mean), abs=1e-6)


def test_the_last_trial_number_is_not_too_large():
    """Near 2^31 trials the number of chunks must not overflow: the last few of them are counted."""
    keys, laws = jax.random.split(KEY, 1), jnp.asarray(Q)[None]
    plan = trial_loop.Plan(schemes.get("gls"), num_drafts=(2,), method="noise")
    hits = trial_loop.count_accepted(keys, laws, laws, 2**31 - 11, 2**31 - 1, plan=plan)
    assert hits.tolist() == [[10]]


def test_certain_outcomes_have_an_error_bar():
    got = trials.acceptance(KEY, Q, Q, scheme="gls", num_drafts=2, num_trials=100)
    assert float(got.mean) == 1 and 0 < float(got.standard_error) < 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate(num_trials=0), "num_trials: expected an int of at least 1, got 0"),
        (lambda: estimate(num_trials=2**31), "num_trials: expected at most"),
        (lambda: estimate(scheme="nothing"), "scheme: expected one of gls, .* got 'nothing'"),
        (lambda: estimate(scheme="single", num_drafts=2), "scheme 'single' takes at most 1, got 2"),
        (
            lambda: trials.sweep(KEY, P, Q, scheme="gls", num_drafts=(1,), num_trials=1),
            r"\[M, N\].* got \[6\] and \[6\]",
        ),
        (
            lambda: trials.sweep(KEY, P[None], Q[None], scheme="gls", num_drafts=(), num_trials=1),
            "at least one K",
        ),
        (
            lambda: trials.sweep(
                jax.random.split(KEY, 2),
                P[None],
                Q[None],
                scheme="gls",
                num_drafts=(1,),
                num_trials=1,
            ),
            r"key: expected one typed key or 1 of them, got \[2\]",
        ),
        (
            lambda: trials.sweep(
                jax.random.PRNGKey(0), P[None], Q[None], scheme="gls", num_drafts=(1,), num_trials=1
            ),
            "typed",
        ),
        (
            lambda: trials.sweep(KEY, P[None], Q[None], scheme="gls", num_drafts=3, num_trials=1),
            "a sequence of ints, got 3",
        ),
        (lambda: estimate(scheme=None), "scheme: expected one of gls, .* got None"),
        (lambda: trials.acceptance(0, P, Q, scheme="gls", num_drafts=1, num_trials=1), "typed key"),
        (
            lambda: trials.acceptance(KEY, P[:3], Q, scheme="gls", num_drafts=1, num_trials=1),
            "same number of categories",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
