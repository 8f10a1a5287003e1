"""Simulated acceptances: the trials are those of the scheme, however the work is cut."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import races, schemes, trials, work_shape
from gls_jax.exact import batched
from gls_jax.trials import trial_loop
from tests.problems import PROBLEMS, logs

KEY = jax.random.key(3)
P, Q = map(logs, PROBLEMS["plain"])
LOG_P = np.stack([logs(p) for p, _ in PROBLEMS.values()])
LOG_Q = np.stack([logs(q) for _, q in PROBLEMS.values()])


def estimate(num_trials=5000, scheme="gls", num_drafts=3, **options):
    return trials.acceptance(
        KEY, P, Q, scheme=scheme, num_drafts=num_drafts, num_trials=num_trials, **options
    )


def test_trials_are_those_of_the_scheme():
    """Trial t is `propose` and `verify` under `fold_in(key, t)`, so the counts are equal."""
    scheme = schemes.get("gls")

    def trial(index):
        key = jax.random.fold_in(KEY, index)
        drafts = scheme.propose(key, P, 3)
        return jnp.any(drafts == scheme.verify(key, drafts, P, Q))

    accepted = int(jax.vmap(trial)(jnp.arange(5000)).sum())
    result = estimate()
    assert float(result.mean) == pytest.approx(accepted / 5000, abs=1e-7)
    rate = (accepted + 1) / 5002
    standard_error = np.sqrt(rate * (1 - rate) / 5000)
    assert float(result.standard_error) == pytest.approx(standard_error, rel=1e-5)
    assert int(result.num_trials) == 5000


def change_cpu_shape(monkeypatch, **sizes):
    monkeypatch.setattr(work_shape, "CPU", dataclasses.replace(work_shape.CPU, **sizes))


@pytest.mark.parametrize(("per_chunk", "per_call"), [(7, 1), (2**22, 2**30)])
def test_chunks_do_not_change_the_count(monkeypatch, per_chunk, per_call):
    whole = {name: float(estimate(scheme=name, num_drafts=1).mean) for name in ("gls", "single")}
    change_cpu_shape(monkeypatch, trial_numbers=per_chunk, noise_per_report=per_call)
    for name, mean in whole.items():
        assert float(estimate(scheme=name, num_drafts=1).mean) == mean


@pytest.mark.parametrize("scheme", ["gls", "gls_strong", "poisson", "gumbel_topk", "naive"])
def test_entries_of_a_sweep_are_single_acceptances(scheme):
    sweep = trials.sweep(KEY, LOG_P, LOG_Q, scheme=scheme, num_drafts=(1, 4, 2), num_trials=300)
    assert sweep.mean.shape == sweep.standard_error.shape == (len(PROBLEMS), 3)
    for m in (0, 5, 11):
        for c, k in enumerate((1, 4, 2)):
            single = trials.acceptance(
                jax.random.fold_in(KEY, m),
                LOG_P[m],
                LOG_Q[m],
                scheme=scheme,
                num_drafts=k,
                num_trials=300,
            )
            assert float(single.mean) == float(sweep.mean[m, c])


def test_sweep_takes_a_key_a_pair_and_diverse_drafts():
    keys = races.keys.fold_in_each(KEY, jnp.arange(len(PROBLEMS)))
    sweep = partial(trials.sweep, scheme="gls", num_trials=100)
    one_key = sweep(KEY, LOG_P, LOG_Q, num_drafts=(2,))
    many_keys = sweep(keys, LOG_P, LOG_Q, num_drafts=(2,))
    np.testing.assert_array_equal(one_key.mean, many_keys.mean)
    draft_rows = np.repeat(LOG_P[:, None], 2, axis=1)
    diverse = sweep(KEY, draft_rows, LOG_Q, num_drafts=(1, 2))
    np.testing.assert_array_equal(diverse.mean[:, 1], one_key.mean[:, 0])


def test_thousands_of_pairs_compile_once():
    """2,000 pairs x 3 list lengths; another number of trials adds no compilation."""
    log_p, log_q = jax.nn.log_softmax(jax.random.normal(KEY, (2, 2000, 5)))
    counts = (1, 2, 4)
    first = trials.sweep(KEY, log_p, log_q, scheme="gls", num_drafts=counts, num_trials=50)
    num_programs = trial_loop._count_in_shards._cache_size()
    again = trials.sweep(KEY, log_p, log_q, scheme="gls", num_drafts=counts, num_trials=51)
    assert trial_loop._count_in_shards._cache_size() == num_programs
    exact = batched.acceptance_curves(schemes.get("gls"), log_p, log_q, counts)
    for result, num_trials in ((first, 50), (again, 51)):
        error = np.sqrt((exact * (1 - exact)).sum(0) / num_trials) / 2000
        assert (abs(np.asarray(result.mean - exact).mean(0)) < 6 * error).all()  # 2e-9 each


def test_progress_rises_to_the_total(monkeypatch):
    change_cpu_shape(monkeypatch, noise_per_report=1)  # a report every 1,024 trials
    seen = []
    estimate(num_trials=5000, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 5 and seen[-1] == (5000, 5000)
    assert all(total == 5000 for _, total in seen)
    assert all(earlier < later for (earlier, _), (later, _) in itertools.pairwise(seen))


def test_memory_does_not_grow_with_the_trials():
    keys = jax.eval_shape(lambda: jax.random.split(KEY, 1))
    log_probs = jax.ShapeDtypeStruct((1, 1000), jnp.float32)
    sweep = partial(trials.sweep, scheme="gls", num_drafts=(8,), num_trials=2**30, method="noise")
    compiled = jax.jit(sweep).lower(keys, log_probs, log_probs).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**23


def test_under_jit_the_result_is_the_same():
    traced = jax.jit(
        lambda p, q: trials.acceptance(KEY, p, q, scheme="gls", num_drafts=3, num_trials=5000).mean
    )
    assert float(traced(P, Q)) == pytest.approx(float(estimate().mean), abs=1e-6)


def test_the_last_trials_of_2_to_the_31_are_counted():
    """The number of chunks must not overflow there."""
    keys = jax.random.split(KEY, 1)
    log_q = jnp.asarray(Q)[None]
    for shape in (work_shape.CPU, work_shape.accelerator()):
        program = trial_loop.TrialProgram(schemes.get("gls"), (2,), "noise", shape)
        chunk = trial_loop.chunk_of(program, 1, log_q.shape[1:], 10)
        accepted = trial_loop.count_accepted(
            keys, log_q, log_q, 2**31 - 11, 2**31 - 1, program=program, chunk=chunk
        )
        assert accepted.tolist() == [[10]]


def test_certain_outcomes_have_a_standard_error():
    result = trials.acceptance(KEY, Q, Q, scheme="gls", num_drafts=2, num_trials=100)
    assert float(result.mean) == 1 and 0 < float(result.standard_error) < 0.02


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
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
