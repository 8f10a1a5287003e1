"""The core: Monte Carlo, exact acceptance at a vocabulary, training losses, and import time."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.timing import (
    VOCABULARY,
    Benchmark,
    Line,
    compile_seconds,
    in_new_process,
    peak_megabytes,
    rates_against_numpy,
    rounded_median,
    take_turns,
    time_call,
    vocabulary_pair,
    waiting,
)
from gls_jax import losses, races, schemes, trials


def monte_carlo(repeats: int, *, num_categories: int, num_drafts: int = 8) -> Line:
    """Trials per second of `trials.acceptance` (GLS) against vectorised NumPy in float32."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(num_categories), 2).astype(np.float32)
    # As many trials as make a turn long enough to be timed. NumPy holds all noise in memory, so
    # its turns are shorter.
    noise_per_trial = trials.noise_per_trial(schemes.get("gls"), num_drafts, num_categories)
    num_trials = 2**27 // noise_per_trial
    num_numpy_trials = max(8, 2**18 // num_categories)
    simulate = partial(
        trials.acceptance,
        races.new_key(0),
        jnp.log(p),
        jnp.log(q),
        scheme="gls",
        num_drafts=num_drafts,
        num_trials=num_trials,
    )
    simulate_with_numpy = partial(numpy_trials, rng, p, q, num_drafts, num_numpy_trials)
    rates = rates_against_numpy(
        "trials", simulate, num_trials, simulate_with_numpy, num_numpy_trials, repeats
    )
    return {"benchmark": f"monte carlo, N={num_categories}, K={num_drafts}", **rates}


def numpy_trials(
    rng: np.random.Generator, p: np.ndarray, q: np.ndarray, num_drafts: int, num_trials: int
) -> int:
    """The peer: Algorithm 1 on whole arrays. Returns how many trials were accepted."""
    noise = rng.standard_exponential((num_trials, num_drafts, p.size), dtype=np.float32)
    drafts = (noise / p).argmin(-1)
    target = (noise.min(1) / q).argmin(-1)
    return int((drafts == target[:, None]).any(1).sum())


def exact_acceptance(repeats: int, num_drafts: int = 8) -> Line:
    """Exact GLS acceptance at a vocabulary, and how many NumPy trials take as long."""
    log_p, log_q = vocabulary_pair()
    evaluate = waiting(_jitted_acceptance(num_drafts), log_p, log_q)
    first_call = time_call(evaluate)
    # The peer can only simulate: its unit is one trial, with noise for the whole vocabulary.
    rng = np.random.default_rng(0)
    p = np.exp(np.asarray(log_p))
    q = np.exp(np.asarray(log_q))
    numpy_trial = partial(numpy_trials, rng, p, q, num_drafts, 1)
    our_times, numpy_times = take_turns(evaluate, numpy_trial, repeats)
    # The peak of a process never falls again, so memory is measured in a separate process.
    added_megabytes = in_new_process(
        "from experiments.bench import core_suite;"
        f"print(core_suite.exact_peak_megabytes({num_drafts}))"
    )
    return {
        "benchmark": f"exact gls acceptance, N={VOCABULARY}, K={num_drafts}",
        "seconds": rounded_median(our_times, 4),
        "peak_megabytes": added_megabytes,
        "numpy_dense_trials_in_that_time": round(
            float(np.median(our_times) / np.median(numpy_times)), 1
        ),
        "compile_seconds": compile_seconds(first_call, our_times),
    }


def exact_peak_megabytes(num_drafts: int) -> float:
    """Megabytes that the exact acceptance adds to the process's peak, compilation included."""
    log_p, log_q = jax.block_until_ready(vocabulary_pair())
    peak_before = peak_megabytes()
    jax.block_until_ready(_jitted_acceptance(num_drafts)(log_p, log_q))
    return round(peak_megabytes() - peak_before, 1)


def _jitted_acceptance(num_drafts: int):
    return jax.jit(partial(schemes.get("gls").acceptance, num_drafts=num_drafts))


def training(
    repeats: int,
    *,
    scheme: str,
    num_positions: int = 256,
    num_tokens: int = 49_152,
    num_drafts: int = 4,
) -> Line:
    """Value and gradient of the exact acceptance as a loss, against those of a KL loss."""
    # The KL loss always has 256 positions. Ours has fewer where it is slow, so both are reported
    # for one position.
    num_kl_positions = 256
    # The target resembles the drafter, as after some training.
    draft_logits, noise = 2.5 * jax.random.normal(
        jax.random.key(0), (2, num_kl_positions, num_tokens)
    )
    target_logits = 0.8 * draft_logits + 0.2 * noise

    # The usual loss of a drafter, KL(q || p).
    def kl_loss(draft_logits, target_logits):
        log_p = jax.nn.log_softmax(draft_logits)
        log_q = jax.nn.log_softmax(target_logits)
        return jnp.mean(jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1))

    def acceptance_loss(draft_logits, target_logits):
        return jnp.mean(
            losses.acceptance(draft_logits, target_logits, scheme=scheme, num_drafts=num_drafts)
        )

    # A training step needs the value and the gradient by the drafter's logits.
    loss_and_gradient = jax.jit(jax.value_and_grad(acceptance_loss))
    kl_and_gradient = jax.jit(jax.value_and_grad(kl_loss))
    # Memory is what the compiler plans for 256 positions, also where fewer are timed.
    logits_shape = jax.ShapeDtypeStruct(draft_logits.shape, jnp.float32)
    compiled = loss_and_gradient.lower(logits_shape, logits_shape).compile()
    memory_analysis = compiled.memory_analysis()  # None where the backend has none
    our_times, kl_times = take_turns(
        waiting(loss_and_gradient, draft_logits[:num_positions], target_logits[:num_positions]),
        waiting(kl_and_gradient, draft_logits, target_logits),
        repeats,
    )
    milliseconds = 1e3 * our_times / num_positions
    kl_milliseconds = 1e3 * kl_times / num_kl_positions
    return {
        "benchmark": f"training on {scheme}, N={num_tokens}, K={num_drafts}",
        "milliseconds_a_position": rounded_median(milliseconds, 2),
        "kl_milliseconds_a_position": rounded_median(kl_milliseconds, 3),
        "ratio": rounded_median(milliseconds / kl_milliseconds, 1),
        "temporary_megabytes_256_positions": memory_analysis
        and round(memory_analysis.temp_size_in_bytes / 1e6, 1),
    }


def import_time(repeats: int) -> Line:
    """Seconds that `import gls_jax` adds to importing jax and flax."""
    import_times = [in_new_process(_IMPORT) for _ in range(repeats)]
    return {
        "benchmark": "import gls_jax beyond jax and flax",
        "seconds": rounded_median(import_times, 3),
    }


# Not counting what every user of JAX and Flax has imported anyway.
_IMPORT = """
import jax, flax, time
start = time.perf_counter()
import gls_jax
print(time.perf_counter() - start)
"""

# The loss of `gumbel_topk` is slow at a vocabulary: fewer positions.
SUITE: tuple[Benchmark, ...] = (
    *(partial(monte_carlo, num_categories=size) for size in (10, 1000, VOCABULARY)),
    exact_acceptance,
    partial(training, scheme="poisson"),
    partial(training, scheme="gls"),
    partial(training, scheme="gumbel_topk", num_positions=8),
    import_time,
)
