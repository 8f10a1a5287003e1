"""The Gaussian codec: both searches against NumPy on whole arrays, and what they cost as candidates
multiply.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import jax
import numpy as np

from gls_jax import compression, races
from gls_jax.bench import measure
from gls_jax.bench.measure import Line, seconds
from gls_jax.compression import GaussianCodec
from gls_jax.compression.gaussian.monte_carlo_distortion import draw_symbols

__all__ = ["SUITE", "against_numpy", "memory", "sizes", "throughput", "trials"]

_SYMBOLS = {"dense": 2048, "ordered": 4 * 4096}  # of one turn, about a second
_BLOCKS = 256  # of NumPy's


def codec(search: str, num_candidates: int = 2**15) -> GaussianCodec:
    """The code of the benchmarks: four decoders, 6 bits."""
    return GaussianCodec(4, num_candidates, 64, 0.001, 0.5, search=search)


def against_numpy(search: str) -> Callable[[int], Line]:
    """Blocks (a symbol through the encoder and four decoders) a second against NumPy in float32."""

    def benchmark(repeats: int) -> Line:
        count = _SYMBOLS[search]
        source, sides, _ = draw_symbols(
            codec(search).joint_distribution, races.new_key(0), count, 4
        )
        mine = lambda: _blocks(codec(search), source, sides)  # noqa: E731
        first = seconds(mine)
        peer = lambda: numpy_blocks(codec(search), source[:_BLOCKS], sides[:, :_BLOCKS])  # noqa: E731
        turns = measure.turns(mine, peer, repeats)
        own, other = count / np.array(turns[0]), _BLOCKS / np.array(turns[1])
        return {
            "benchmark": f"gaussian codec, {search} search, N=2^15, K=4, L=64",
            "blocks_per_second": round(float(np.median(own))),
            "numpy_blocks_per_second": round(float(np.median(other))),
            "ratio": round(float(np.median(own / other)), 2),
            "compile_seconds": round(first - statistics.median(turns[0]), 2),
        }

    return benchmark


def sizes(repeats: int) -> Line:
    """Microseconds a block of ordered search as `N` grows; all sizes take turns."""
    count, powers = _SYMBOLS["ordered"], (15, 18, 21, 24)
    source, sides, _ = draw_symbols(codec("ordered").joint_distribution, races.new_key(0), count, 4)
    runs = [lambda n=n: _blocks(codec("ordered", 2**n), source, sides) for n in powers]
    for run in runs:
        run()
    times = [[seconds(run) for run in runs] for _ in range(repeats)]
    typical = np.median(times, axis=0) / count * 1e6
    return {
        "benchmark": "gaussian codec, ordered search as N grows, K=4, L=64",
        **{
            f"microseconds_per_block_2^{n}": round(float(time), 1)
            for n, time in zip(powers, typical, strict=True)
        },
        "ratio_2^24_to_2^15": round(float(np.median([row[-1] / row[0] for row in times])), 2),
    }


def memory(repeats: int) -> Line:
    """Megabytes that a dense block of 2^22 candidates adds to the process, compilation included."""
    code = "from gls_jax.bench import codec; print(codec._dense_memory())"
    return {
        "benchmark": "gaussian codec, dense search, N=2^22, K=4, L=64, eight symbols",
        "peak_megabytes": measure.in_a_fresh_process(code),
    }


def trials(repeats: int) -> Line:
    """Seconds of 10,000 dense trials of one point of the tables."""
    one = GaussianCodec(4, 2**15, 64, 0.001, 0.5, search="dense")
    first = seconds(lambda: compression.simulate(one, races.new_key(0), 8))
    times = [
        seconds(lambda: compression.simulate(one, races.new_key(0), 10_000))
        for _ in range(min(repeats, 3))
    ]
    return {
        "benchmark": "gaussian codec, 10,000 dense trials, N=2^15, K=4, L=64",
        "seconds": round(statistics.median(times), 2),
        "compile_seconds": round(first, 2),
    }


def throughput(repeats: int) -> Line:
    """Encoding to bytes and decoding for one decoder, 100,000 symbols of 4 bytes."""
    one, count = codec("ordered"), 100_000
    source, sides, _ = draw_symbols(one.joint_distribution, races.new_key(0), count, 1)
    blob = one.encode(0, source)
    turns = measure.turns(
        lambda: one.encode(0, source), lambda: one.decode(blob, sides[0], 0), repeats
    )
    encoding, decoding = (statistics.median(times) for times in turns)
    return {
        "benchmark": "gaussian codec, bytes and back, N=2^15, L=64",
        "encoded_symbols_per_second": round(count / encoding),
        "encoded_megabytes_per_second": round(4e-6 * count / encoding, 3),
        "decoded_symbols_per_second": round(count / decoding),
        "decoded_megabytes_per_second": round(4e-6 * count / decoding, 3),
    }


@np.errstate(divide="ignore")  # NumPy's float32 clocks are sometimes 0
def numpy_blocks(one: GaussianCodec, source: np.ndarray, sides: np.ndarray) -> int:
    """The peer: the scheme's definition on whole arrays, block by block. Returns the matches."""
    law, rng, hits = one.joint_distribution, np.random.default_rng(0), 0
    known = np.float32(1 / (1 + law.side_variance))
    spread = np.float32(1 + law.target_variance) - known
    for a, t in zip(source.astype(np.float32), sides.T.astype(np.float32), strict=True):
        w = rng.standard_normal(one.num_candidates, np.float32) * np.float32(law.scale)
        bins = rng.integers(0, one.num_bins, one.num_candidates, np.int32)
        clocks = rng.standard_exponential((one.num_decoders, one.num_candidates), np.float32)
        prior = w**2 / np.float32(2 * law.scale**2)
        encoder = prior - (w - a) ** 2 / np.float32(2 * law.target_variance)
        index = np.argmin(np.log(clocks.min(0)) - encoder)
        decoders = prior - (w - t[:, None] * known) ** 2 / (2 * spread)
        scores = np.where(bins == bins[index], np.log(clocks) - decoders, np.inf)
        hits += int((scores.argmin(1) == index).any())
    return hits


def _blocks(one: GaussianCodec, source, sides) -> None:
    keys = compression.symbol_keys(races.new_key(0), len(source))
    message = one.send(keys, source).message
    for decoder, side in enumerate(sides):
        one.receive(keys, message, side, decoder)


def _dense_memory() -> float:
    source, sides, _ = draw_symbols(codec("dense").joint_distribution, races.new_key(0), 8, 4)
    keys = compression.symbol_keys(races.new_key(0), 8)
    jax.block_until_ready(jax.random.key_data(keys))
    before = measure.peak_megabytes()
    one = codec("dense", 2**22)
    message = one.send(keys, source).message
    for decoder, side in enumerate(sides):
        one.receive(keys, message, side, decoder)
    return round(measure.peak_megabytes() - before, 1)


SUITE = (against_numpy("dense"), against_numpy("ordered"), sizes, memory, trials, throughput)
