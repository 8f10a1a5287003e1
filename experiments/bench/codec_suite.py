"""The Gaussian codec: both searches against NumPy on whole arrays, memory, and large N."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

from experiments.bench.timing import (
    Line,
    in_new_process,
    peak_megabytes,
    rates_against_numpy,
    rounded_median,
    take_turns,
    time_call,
)
from gls_jax import compression, races
from gls_jax.compression import GaussianCodec
from gls_jax.compression.gaussian.monte_carlo_distortion import draw_symbols

# A block is one symbol that goes through the encoder and four decoders. These numbers of blocks
# take about a second.
_NUM_BLOCKS = {"dense": 2048, "ordered": 4 * 4096}
_NUM_NUMPY_BLOCKS = 256


def _codec(search: str, num_candidates: int = 2**15) -> GaussianCodec:
    """The code of all benchmarks: four decoders, 6 bits a symbol."""
    return GaussianCodec(
        num_decoders=4,
        num_candidates=num_candidates,
        num_bins=64,
        target_variance=0.001,
        side_variance=0.5,
        search=search,
    )


def _draw(codec: GaussianCodec, num_symbols: int, num_decoders: int = 4):
    """Source `f64[n]` and side information of the decoders `f64[num_decoders, n]`."""
    key = races.new_key(0)
    source, side_information, _ = draw_symbols(
        codec.joint_distribution, key, num_symbols, num_decoders
    )
    return source, side_information


def _send_and_receive(
    codec: GaussianCodec, source: np.ndarray, side_information: np.ndarray
) -> None:
    keys = compression.symbol_keys(races.new_key(0), len(source))
    message = codec.send(keys, source).message
    for decoder, side in enumerate(side_information):
        codec.receive(keys, message, side, decoder)


def against_numpy(repeats: int, *, search: str) -> Line:
    """Blocks per second against NumPy in float32."""
    codec = _codec(search)
    num_blocks = _NUM_BLOCKS[search]
    source, side_information = _draw(codec, num_blocks)
    run_ours = partial(_send_and_receive, codec, source, side_information)
    # NumPy takes fewer blocks, since it is slower.
    few = slice(_NUM_NUMPY_BLOCKS)
    run_numpy = partial(numpy_blocks, codec, source[few], side_information[:, few])
    rates = rates_against_numpy(
        "blocks", run_ours, num_blocks, run_numpy, _NUM_NUMPY_BLOCKS, repeats
    )
    return {"benchmark": f"gaussian codec, {search} search, N=2^15, K=4, L=64", **rates}


# NumPy's float32 exponentials are sometimes 0, and then their logarithm is -inf.
@np.errstate(divide="ignore")
def numpy_blocks(codec: GaussianCodec, source: np.ndarray, side_information: np.ndarray) -> int:
    """The peer: the definition of `gls` on whole arrays, block by block.

    Returns:
        How many blocks were matched by some decoder.
    """
    model = codec.joint_distribution
    rng = np.random.default_rng(0)
    # Given its side information t, a decoder expects the target to be normal around
    # `gain * t` with this variance.
    gain = np.float32(1 / (1 + model.side_variance))
    decoder_variance = np.float32(1 + model.target_variance) - gain
    encoder_scale = np.float32(2 * model.target_variance)
    source = source.astype(np.float32)
    side_information = side_information.astype(np.float32)
    num_matched = 0
    for symbol, side in zip(source, side_information.T, strict=True):
        # What all parties share: candidates, their bins, and exponential noise for each decoder.
        candidates = rng.standard_normal(codec.num_candidates, np.float32)
        candidates *= np.float32(model.scale)
        bin_numbers = rng.integers(0, codec.num_bins, codec.num_candidates, np.int32)
        noise = rng.standard_exponential((codec.num_decoders, codec.num_candidates), np.float32)
        # Log-weights of the candidates against their prior; the encoder minimises noise / weight.
        log_prior = candidates**2 / np.float32(2 * model.scale**2)
        encoder_weights = log_prior - (candidates - symbol) ** 2 / encoder_scale
        log_noise = np.log(noise)
        sent_index = np.argmin(log_noise.min(0) - encoder_weights)
        # A decoder does the same with its own noise within the bin that it was told.
        squared_distance = (candidates - side[:, None] * gain) ** 2
        decoder_weights = log_prior - squared_distance / (2 * decoder_variance)
        is_in_bin = bin_numbers == bin_numbers[sent_index]
        arrivals = np.where(is_in_bin, log_noise - decoder_weights, np.inf)
        num_matched += int((arrivals.argmin(1) == sent_index).any())
    return num_matched


def growing_candidates(repeats: int) -> Line:
    """Microseconds a block of ordered search as `N` grows; all sizes take turns."""
    num_blocks = _NUM_BLOCKS["ordered"]
    log2_sizes = (15, 18, 21, 24)
    source, side_information = _draw(_codec("ordered"), num_blocks)
    run_sizes = [
        partial(_send_and_receive, _codec("ordered", 2**n), source, side_information)
        for n in log2_sizes
    ]
    for run in run_sizes:
        run()  # compiles
    # Seconds by turn and size.
    all_times = np.array([[time_call(run) for run in run_sizes] for _ in range(repeats)])
    line: Line = {"benchmark": "gaussian codec, ordered search as N grows, K=4, L=64"}
    for n, size_times in zip(log2_sizes, all_times.T, strict=True):
        line[f"microseconds_per_block_2^{n}"] = rounded_median(size_times / num_blocks * 1e6, 1)
    line["ratio_2^24_to_2^15"] = rounded_median(all_times[:, -1] / all_times[:, 0], 2)
    return line


def dense_memory(repeats: int) -> Line:
    """Megabytes that a dense block of 2^22 candidates adds to the process, compilation included."""
    code = "from experiments.bench import codec_suite; print(codec_suite.dense_peak_megabytes())"
    return {
        "benchmark": "gaussian codec, dense search, N=2^22, K=4, L=64, eight symbols",
        "peak_megabytes": in_new_process(code),
    }


def dense_peak_megabytes() -> float:
    """What :func:`dense_memory` measures, in a process that has done nothing else."""
    source, side_information = _draw(_codec("dense"), 8)
    # Keys are made here, too, so that their compilation does not count.
    keys = compression.symbol_keys(races.new_key(0), 8)
    jax.block_until_ready(jax.random.key_data(keys))
    peak_before = peak_megabytes()
    _send_and_receive(_codec("dense", 2**22), source, side_information)
    return round(peak_megabytes() - peak_before, 1)


def dense_trials(repeats: int) -> Line:
    """Seconds of 10,000 dense trials of one point of the paper's tables."""
    simulate = partial(compression.simulate, _codec("dense"), races.new_key(0))
    first_call = time_call(lambda: simulate(8))
    # Three turns of several seconds are enough.
    trial_times = [time_call(lambda: simulate(10_000)) for _ in range(min(repeats, 3))]
    return {
        "benchmark": "gaussian codec, 10,000 dense trials, N=2^15, K=4, L=64",
        "seconds": rounded_median(trial_times, 2),
        "compile_seconds": round(first_call, 2),
    }


def throughput(repeats: int) -> Line:
    """Encoding 100,000 symbols of 4 bytes into a blob, and decoding it with one decoder."""
    codec = _codec("ordered")
    num_symbols = 100_000
    source, side_information = _draw(codec, num_symbols, num_decoders=1)
    blob = codec.encode(0, source)
    encode = partial(codec.encode, 0, source)
    decode = partial(codec.decode, blob, side_information[0], 0)
    encode_times, decode_times = take_turns(encode, decode, repeats)
    encode_rate = num_symbols / np.median(encode_times)
    decode_rate = num_symbols / np.median(decode_times)
    return {
        "benchmark": "gaussian codec, bytes and back, N=2^15, L=64",
        "encoded_symbols_per_second": round(float(encode_rate)),
        "encoded_megabytes_per_second": round(float(4e-6 * encode_rate), 3),
        "decoded_symbols_per_second": round(float(decode_rate)),
        "decoded_megabytes_per_second": round(float(4e-6 * decode_rate), 3),
    }


SUITE = (
    partial(against_numpy, search="dense"),
    partial(against_numpy, search="ordered"),
    growing_candidates,
    dense_memory,
    dense_trials,
    throughput,
)
