"""Benchmarks: each figure beside a peer measured in the same run, warm, with compile time reported apart.

A peer and ours take turns, and the ratio is the median over the turns: a machine that is busy for a while slows both.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import races, schemes, trials

__all__ = ["SUITES", "run"]

VOCABULARY = 151_936
Line = dict[str, object]


def run(suite: str, repeats: int) -> Iterator[Line]:
    """Yield one JSON-ready line a benchmark, the environment first.

    Args:
        suite: a name in `SUITES`.
        repeats: timed turns, at least 1.

    Raises:
        ValueError: an unknown suite, or no repeats.
    """
    if suite not in SUITES:
        raise ValueError(f"suite: expected one of {', '.join(SUITES)}, got {suite!r}")
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    return _lines(suite, repeats)


def _lines(suite: str, repeats: int) -> Iterator[Line]:
    yield {
        "benchmark": "environment",
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "repeats": repeats,
    }
    for benchmark in SUITES[suite]:
        yield benchmark(repeats)


def monte_carlo(num_items: int, num_drafts: int = 8) -> Callable[[int], Line]:
    """Trials a second of `trials.acceptance` (GLS) against vectorised NumPy in float32."""

    def benchmark(repeats: int) -> Line:
        rng = np.random.default_rng(0)
        p, q = rng.dirichlet(np.ones(num_items), 2).astype(np.float32)
        log_p, log_q = jnp.log(p), jnp.log(q)
        key = jax.random.key(0)
        ours, numpys = 2**24 // num_items, 2**18 // num_items

        def simulate() -> None:
            trials.acceptance(key, log_p, log_q, scheme="gls", num_drafts=num_drafts, num_trials=ours)

        first = _seconds(simulate)
        turns = _turns(simulate, lambda: numpy_trials(rng, p, q, num_drafts, numpys), repeats)
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
    """Exact GLS acceptance at a vocabulary, and how many dense Monte Carlo trials fit into its time."""
    log_p, log_q = _vocabulary_laws()
    accept = jax.jit(lambda p, q: schemes.get("gls").acceptance(p, q, num_drafts))
    first = _seconds(lambda: accept(log_p, log_q).block_until_ready())
    rng = np.random.default_rng(0)
    p, q = np.exp(np.asarray(log_p)), np.exp(np.asarray(log_q))
    turns = _turns(
        lambda: accept(log_p, log_q).block_until_ready(), lambda: numpy_trials(rng, p, q, num_drafts, 1), repeats
    )
    own = statistics.median(turns[0])
    return {
        "benchmark": f"exact gls acceptance, N={VOCABULARY}, K={num_drafts}",
        "seconds": round(own, 4),
        "peak_megabytes": _in_a_fresh_process(f"vocabulary({num_drafts})"),
        "numpy_dense_trials_in_that_time": round(own / statistics.median(turns[1]), 1),
        "compile_seconds": round(first - own, 2),
    }


def importing(repeats: int) -> Line:
    """Seconds that `import gls_jax` adds to importing jax and flax."""
    own = [_in_a_fresh_process("importing()") for _ in range(repeats)]
    return {"benchmark": "import gls_jax beyond jax and flax", "seconds": round(statistics.median(own), 3)}


def numpy_trials(rng: np.random.Generator, p, q, num_drafts: int, count: int) -> int:
    """The peer: Algorithm 1 on whole arrays."""
    clocks = rng.standard_exponential((count, num_drafts, p.size), dtype=np.float32)
    drafts = (clocks / p).argmin(-1)
    target = (clocks.min(1) / q).argmin(-1)
    return int((drafts == target[:, None]).any(1).sum())


def verifying(name: str, batch: int = 1) -> Callable[[int], Line]:
    """`verify` at a vocabulary against drawing the noise of 8 streams, the least that GLS must do."""

    def benchmark(repeats: int) -> Line:
        scheme = schemes.get(name)
        num_drafts = scheme.max_drafts or 8
        log_p, log_q = _vocabulary_laws()
        keys = jax.random.split(jax.random.key(0), batch)
        drafts = jax.vmap(lambda key: scheme.propose(key, log_p, num_drafts))(keys)
        laws = [jnp.tile(law, (batch, 1)) for law in (log_p, log_q)]
        verify = jax.jit(jax.vmap(scheme.verify))
        draw = jax.jit(jax.vmap(lambda key: races.exponentials(key, 8, VOCABULARY)))
        first = _seconds(lambda: jax.block_until_ready(verify(keys, drafts, *laws)))
        turns = _turns(
            lambda: jax.block_until_ready(verify(keys, drafts, *laws)),
            lambda: jax.block_until_ready(draw(keys)),
            repeats,
        )
        own, peer = (np.array(turn) for turn in turns)
        return {
            "benchmark": f"verify {name}, N={VOCABULARY}, K={num_drafts}, batch {batch}",
            "seconds": round(float(np.median(own)), 5),
            "noise_seconds": round(float(np.median(peer)), 5),
            "ratio": round(float(np.median(own / peer)), 2),
            "compile_seconds": round(first - float(np.median(own)), 2),
        }

    return benchmark


def against_transformers(name: str, num_items: int = 32_000, length: int = 4, batch: int = 64) -> Callable[[int], Line]:
    """One draft of four tokens: `verify_tree` against `transformers`' speculative sampling, the same laws."""

    def benchmark(repeats: int) -> Line:
        try:
            import torch
            from transformers.generation.utils import _speculative_sampling
        except ModuleNotFoundError:
            return {"benchmark": f"{name} against transformers", "skipped": "needs the peers extra (make peers)"}
        scheme = schemes.get(name)
        z = np.random.default_rng(0).normal(size=(2, length + 1, num_items)).astype(np.float32) * 2.5
        drafter, target = z[0], 0.8 * z[0] + 0.2 * z[1]
        log_p = jax.nn.log_softmax(jnp.asarray(drafter[:length]))
        key = jax.random.key(0)
        tokens = [scheme.propose(scheme.draft_key(key, 0, t, t), law, 1) for t, law in enumerate(log_p)]
        tree = schemes.chains(jnp.stack(tokens, axis=1), ranked=scheme.ranked)
        keys = jax.random.split(key, batch)
        # Logits in, as there: the normalisation is part of the step.
        step = lambda key, p, q: scheme.verify_tree(key, 0, tree, jax.nn.log_softmax(p), jax.nn.log_softmax(q))  # noqa: E731
        one, many = jax.jit(step), jax.jit(lambda keys, p, q: jax.lax.map(lambda key: step(key, p, q), keys))
        given = jnp.asarray(drafter[:length]), jnp.asarray(target)
        ids = torch.tensor(np.stack([np.array(t)[0] for t in tokens])[None].astype(np.int64))
        logits = torch.tensor(drafter[None, :length]), torch.tensor(target[None])
        peer = lambda: _speculative_sampling(ids, logits[0], length, logits[1], False)  # noqa: E731
        first = _seconds(lambda: jax.block_until_ready(one(key, *given)))
        turns = _turns(lambda: jax.block_until_ready(one(key, *given)), peer, 5 * repeats)
        jax.block_until_ready(many(keys, *given))
        own, other = (np.array(turn) for turn in turns)
        return {
            "benchmark": f"{name} against transformers, N={num_items}, K=1, L={length}",
            "milliseconds": round(1e3 * float(np.median(own)), 3),
            "milliseconds_in_a_loop": round(
                1e3 * _seconds(lambda: jax.block_until_ready(many(keys, *given))) / batch, 3
            ),
            "transformers_milliseconds": round(1e3 * float(np.median(other)), 3),
            "ratio": round(float(np.median(other / own)), 2),
            "compile_seconds": round(first - float(np.median(own)), 2),
        }

    return benchmark


SUITES: dict[str, tuple[Callable[[int], Line], ...]] = {
    "core": (monte_carlo(10), monte_carlo(1000), exact_vocabulary, importing),
    "schemes": (
        *(verifying(name) for name in schemes.NAMES if name != "optimal"),
        *(verifying(name, 64) for name in schemes.NAMES if name not in ("optimal", "weighted_importance")),
        *(against_transformers(name) for name in ("specinfer", "spectr")),
    ),
}


def _vocabulary_laws() -> tuple[jax.Array, jax.Array]:
    z = np.random.default_rng(0).normal(size=(2, VOCABULARY)) * 2.5
    log_p, log_q = jax.nn.log_softmax(jnp.asarray([z[0], 0.8 * z[0] + 0.2 * z[1]], jnp.float32))
    return log_p, log_q


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _turns(ours: Callable[[], object], peer: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of both, taking turns after one warm-up each."""
    ours(), peer()
    pairs = [(_seconds(ours), _seconds(peer)) for _ in range(repeats)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _in_a_fresh_process(call: str) -> float:
    """A number that only a new process can give."""
    code = f"from gls_jax import bench; print(bench._{call})" if call != "importing()" else _IMPORT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


_IMPORT = """
import jax, flax, time
start = time.perf_counter()
import gls_jax
print(time.perf_counter() - start)
"""


def _vocabulary(num_drafts: int) -> float:
    """Megabytes that the exact acceptance adds to the process's peak, compilation included."""
    laws = jax.block_until_ready(_vocabulary_laws())
    before = _peak_megabytes()
    jax.jit(lambda p, q: schemes.get("gls").acceptance(p, q, num_drafts))(*laws).block_until_ready()
    return round(_peak_megabytes() - before, 1)


def _peak_megabytes() -> float:
    """Peak resident memory of this process alone (Linux; `getrusage` would count its parent's)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
