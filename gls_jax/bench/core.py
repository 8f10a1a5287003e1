"""The core: Monte Carlo, the exact acceptance at a vocabulary, and what importing costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import losses, races, schemes, trials
from gls_jax.bench import measure
from gls_jax.bench.measure import VOCABULARY, Line, seconds, vocabulary_laws

__all__ = ["SUITE", "exact_vocabulary", "importing", "monte_carlo", "training"]


def monte_carlo(num_items: int, num_drafts: int = 8) -> Callable[[int], Line]:
    """Trials a second of `trials.acceptance` (GLS) against vectorised NumPy in float32."""

    def benchmark(repeats: int) -> Line:
        rng = np.random.default_rng(0)
        p, q = rng.dirichlet(np.ones(num_items), 2).astype(np.float32)
        log_p, log_q = jnp.log(p), jnp.log(q)
        key = races.new_key(0)
        ours = 2**27 // trials.noise_per_trial(schemes.get("gls"), num_drafts, num_items)
        numpys = max(8, 2**18 // num_items)

        def simulate() -> None:
            trials.acceptance(
                key, log_p, log_q, scheme="gls", num_drafts=num_drafts, num_trials=ours
            )

        first = seconds(simulate)
        turns = measure.turns(
            simulate, lambda: numpy_trials(rng, p, q, num_drafts, numpys), repeats
        )
        mine, peer = ours / np.array(turns[0]), numpys / np.array(turns[1])
        return {
            "benchmark": f"monte carlo, N={num_items}, K={num_drafts}",
            "trials_per_second": round(float(np.median(mine))),
            "numpy_trials_per_second": round(float(np.median(peer))),
            "ratio": round(float(np.median(mine / peer)), 2),
            "compile_seconds": round(first - statistics.median(turns[0]), 2),
        }

    return benchmark


def exact_vocabulary(repeats: int, num_drafts: int = 8) -> Line:
    """Exact GLS acceptance at a vocabulary, and how many dense Monte Carlo trials fit into its
    time.
    """
    log_p, log_q = vocabulary_laws()
    accept = jax.jit(lambda p, q: schemes.get("gls").acceptance(p, q, num_drafts))
    first = seconds(lambda: accept(log_p, log_q).block_until_ready())
    rng = np.random.default_rng(0)
    p, q = np.exp(np.asarray(log_p)), np.exp(np.asarray(log_q))
    turns = measure.turns(
        lambda: accept(log_p, log_q).block_until_ready(),
        lambda: numpy_trials(rng, p, q, num_drafts, 1),
        repeats,
    )
    own = statistics.median(turns[0])
    return {
        "benchmark": f"exact gls acceptance, N={VOCABULARY}, K={num_drafts}",
        "seconds": round(own, 4),
        "peak_megabytes": measure.in_a_fresh_process(
            f"from gls_jax.bench import core; print(core._vocabulary({num_drafts}))"
        ),
        "numpy_dense_trials_in_that_time": round(own / statistics.median(turns[1]), 1),
        "compile_seconds": round(first - own, 2),
    }


def training(
    name: str, positions: int = 256, num_items: int = 49_152, num_drafts: int = 4
) -> Callable[[int], Line]:
    """Value and gradient of the exact acceptance as a loss, beside those of a KL loss on 256
    positions.
    """

    def benchmark(repeats: int) -> Line:
        kl_positions = 256
        draft, noise = 2.5 * jax.random.normal(jax.random.key(0), (2, kl_positions, num_items))
        target = 0.8 * draft + 0.2 * noise

        def kl(draft, target):
            log_p, log_q = jax.nn.log_softmax(draft), jax.nn.log_softmax(target)
            return jnp.mean(jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1))

        def loss(draft, target):
            return jnp.mean(losses.acceptance(draft, target, scheme=name, num_drafts=num_drafts))

        own, peer = (jax.jit(jax.value_and_grad(f)) for f in (loss, kl))
        shape = jax.ShapeDtypeStruct((kl_positions, num_items), jnp.float32)
        analysis = own.lower(shape, shape).compile().memory_analysis()
        some = draft[:positions], target[:positions]
        turns = measure.turns(
            lambda: jax.block_until_ready(own(*some)),
            lambda: jax.block_until_ready(peer(draft, target)),
            repeats,
        )
        mine, other = np.array(turns[0]) / positions, np.array(turns[1]) / kl_positions
        return {
            "benchmark": f"training on {name}, N={num_items}, K={num_drafts}",
            "milliseconds_a_position": round(1e3 * float(np.median(mine)), 2),
            "kl_milliseconds_a_position": round(1e3 * float(np.median(other)), 3),
            "ratio": round(float(np.median(mine / other)), 1),
            "temporary_megabytes_256_positions": analysis
            and round(analysis.temp_size_in_bytes / 1e6, 1),
        }

    return benchmark


def importing(repeats: int) -> Line:
    """Seconds that `import gls_jax` adds to importing jax and flax."""
    own = [measure.in_a_fresh_process(_IMPORT) for _ in range(repeats)]
    return {
        "benchmark": "import gls_jax beyond jax and flax",
        "seconds": round(statistics.median(own), 3),
    }


def numpy_trials(
    rng: np.random.Generator, p: np.ndarray, q: np.ndarray, num_drafts: int, count: int
) -> int:
    """The peer: Algorithm 1 on whole arrays."""
    clocks = rng.standard_exponential((count, num_drafts, p.size), dtype=np.float32)
    drafts = (clocks / p).argmin(-1)
    target = (clocks.min(1) / q).argmin(-1)
    return int((drafts == target[:, None]).any(1).sum())


_IMPORT = """
import jax, flax, time
start = time.perf_counter()
import gls_jax
print(time.perf_counter() - start)
"""


def _vocabulary(num_drafts: int) -> float:
    """Megabytes that the exact acceptance adds to the process's peak, compilation included."""
    laws = jax.block_until_ready(vocabulary_laws())
    before = measure.peak_megabytes()
    jax.jit(lambda p, q: schemes.get("gls").acceptance(p, q, num_drafts))(*laws).block_until_ready()
    return round(measure.peak_megabytes() - before, 1)


SUITE = (
    *(monte_carlo(num_items) for num_items in (10, 1000, VOCABULARY)),
    exact_vocabulary,
    *(training("poisson"), training("gls"), training("gumbel_topk", positions=8)),
    importing,
)
