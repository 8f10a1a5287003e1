"""Dense search against the definition on float64 arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import compression, races
from gls_jax.compression import ListCode, Normal
from tests import oracles

KEY = jax.random.key(11)
COUNT = 200
TIE = 1e-4  # of log-scores

CODES = [
    ListCode(1, 1000, 7, search="dense"),
    ListCode(2, 33, 33, search="dense"),
    ListCode(3, 1000, 10, 3, search="dense"),
    ListCode(2, 5000, 1, scheme="baseline", search="dense"),
    ListCode(4, 9001, 100, search="dense"),
]


def log_weights(candidates, row):
    """Of every symbol and candidate, `f64[n, N]`, from float32 rows and candidates `[n, N, D]`."""
    mean, variance = (np.asarray(part, float)[:, None] for part in row)
    return ((candidates**2 - (candidates - mean) ** 2 / variance) / 2).sum(-1)


def rows(rng, dimension, variance):
    mean = rng.normal(size=(COUNT, dimension)) * np.sqrt(1 - variance)
    return Normal(mean.astype(np.float32), np.full((COUNT, dimension), variance, np.float32))


@pytest.mark.parametrize(
    "code", CODES, ids=lambda code: f"{code.scheme}-{code.num_candidates}-{code.num_bins}"
)
def test_dense_search_is_the_definition(code):
    """Every index and message; a quarter of the symbols get a random message instead of the encoder's.

    float32 may pick the second candidate only if the two best scores differ by rounding: once in 10^4 races.
    """
    rng = np.random.default_rng(3)
    keys = compression.symbol_keys(KEY, COUNT)
    source = rows(rng, code.dimension, 0.05)
    sides = [rows(rng, code.dimension, 0.4) for _ in range(code.num_decoders)]
    indices, streams = jnp.arange(code.num_candidates), jnp.arange(code.num_streams)

    @jax.jit
    @jax.vmap
    def draw(key):
        def stream_noise(stream):
            return races.stream_exponentials(key, indices, code.num_streams, stream)

        candidates = races.candidates(key, indices, code.dimension)
        bins = races.bins(key, indices, code.num_bins)
        return jax.vmap(stream_noise)(streams), candidates, bins

    noise, candidates, bins = map(np.asarray, draw(keys))
    candidates = candidates.astype(float)
    encoder_log_weights = log_weights(candidates, source)
    decoder_log_weights = np.stack([log_weights(candidates, side) for side in sides], axis=1)
    # None: the encoder's message.
    random_messages = rng.integers(0, code.num_bins, COUNT // 4).tolist()
    forced = [None] * (3 * COUNT // 4) + random_messages
    winners, margins = [], []
    for symbol in range(COUNT):
        winner, margin = oracles.list_code(
            noise[symbol],
            encoder_log_weights[symbol],
            decoder_log_weights[symbol],
            bins[symbol],
            forced[symbol],
        )
        winners.append(winner)
        margins.append(margin)
    winners, margins = np.array(winners), np.array(margins)

    sent = compression.encode(code, keys, compression.gaussian_density, (), source)
    np.testing.assert_array_equal(sent.message, bins[np.arange(COUNT), sent.index])
    picked = [sent.index]
    messages = bins[np.arange(COUNT), winners[:, 0]]
    messages[3 * COUNT // 4 :] = random_messages
    for decoder, side in enumerate(sides):
        received = compression.decode(
            code, keys, messages, decoder, compression.gaussian_density, (), side
        )
        has_members = received.index >= 0
        # Not bit for bit: the last bit of a candidate depends on the program that computes it.
        np.testing.assert_allclose(
            received.candidate[has_members],
            candidates[has_members, received.index[has_members]],
            rtol=1e-6,
        )
        picked.append(received.index)
    assert (margins[np.stack(picked, 1) != winners] < TIE).all()
