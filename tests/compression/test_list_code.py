"""Both searches: the distributions of their picks, the lemma, and what must not change a pick."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gls_jax import compression, races
from gls_jax.compression import dense_search
from gls_jax.races import list_code_noise

KEY = jax.random.key(61)
ALPHA = 1e-9  # false-failure rate of every statistical test here
MAX_ERRORS = scipy.stats.norm.isf(ALPHA / 2)  # standard errors, about six
SEARCHES = ("ordered", "dense")


def rows(mean, variance):
    mean = np.asarray(mean, np.float32)
    return compression.Normal(mean, np.full_like(mean, variance))


def problem(count, dimension=1, seed=0):
    """Rows of an encoder and of its decoders: a narrow normal near the source, wide ones near the side information."""
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(count, dimension))
    sides = [source + rng.normal(size=(count, dimension)) for _ in range(3)]
    return rows(source / 1.05, 0.09), [rows(side / 2, 0.54) for side in sides]


@functools.cache
def outcome(
    search, num_decoders, num_candidates, num_bins, scheme="gls", count=10_000, dimension=1
):
    """What is sent, and what every decoder receives."""
    code = compression.ListCode(num_decoders, num_candidates, num_bins, dimension, scheme, search)
    keys = compression.symbol_keys(KEY, count)
    encoder, decoders = problem(count, dimension)
    sent = compression.encode(code, keys, compression.gaussian_density, (), encoder)
    received = [
        compression.decode(
            code, keys, sent.message, k, compression.gaussian_density, (), decoders[k]
        )
        for k in range(num_decoders)
    ]
    return sent, received


@jax.jit
def _log_weights(candidates, mean, variance):
    weigh = functools.partial(compression.gaussian_density.log_weight, ())
    return jax.vmap(weigh)(compression.Normal(mean, variance), candidates)


def weights(num_candidates, row, count):
    """Probabilities of all candidates under one row each, `f64[n, N]`."""
    keys, indices = compression.symbol_keys(KEY, count), jnp.arange(num_candidates)
    candidates = jax.jit(jax.vmap(lambda key: races.candidates(key, indices, 1)))(keys)
    log_weights = np.asarray(_log_weights(candidates, *row), np.float64)
    scaled = np.exp(log_weights - log_weights.max(1, keepdims=True))
    return scaled / scaled.sum(1, keepdims=True)


def deviation(p, index):
    """Standard errors between the mean probability of what was picked and its mean under `p`, `f64[n, N]`."""
    picked, expected = p[np.arange(len(index)), index], (p**2).sum(1)
    return (picked - expected).mean() / (picked - expected).std() * len(index) ** 0.5


def tempered(p):
    """A slightly different distribution."""
    return p**0.8 / (p**0.8).sum(1, keepdims=True)


@functools.cache
def every_bin(num_candidates, num_bins, count):
    keys, indices = compression.symbol_keys(KEY, count), jnp.arange(num_candidates)
    return np.asarray(jax.jit(jax.vmap(lambda key: races.bins(key, indices, num_bins)))(keys))


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(("num_candidates", "num_bins"), [(5, 2), (64, 4)])
def test_encoders_pick_by_their_weights(search, num_candidates, num_bins):
    """The distribution of the index given the candidates; a slightly different one is told apart. All stay in the bin."""
    count = 10_000
    sent, received = outcome(search, 3, num_candidates, num_bins)
    p = weights(num_candidates, problem(count)[0], count)
    bins = every_bin(num_candidates, num_bins, count)
    assert abs(deviation(p, sent.index)) < MAX_ERRORS
    assert abs(deviation(tempered(p), sent.index)) > MAX_ERRORS
    for result in (sent, *received):
        np.testing.assert_array_equal(bins[np.arange(count), result.index], sent.message)


def test_decoders_pick_by_their_weights():
    """In a bin that does not depend on the noise, unlike the encoder's; -1 if it is empty."""
    count, row = 10_000, problem(10_000)[1][0]
    keys, density = compression.symbol_keys(KEY, count), compression.gaussian_density
    inside = np.where(every_bin(64, 4, count) == 1, weights(64, row, count), 0)
    has_members = inside.sum(1) > 0
    p = inside[has_members] / inside[has_members].sum(1, keepdims=True)
    message = np.ones(count, np.int32)
    for search, decoder in itertools.product(SEARCHES, (0, 2)):
        code = compression.ListCode(3, 64, 4, search=search)
        index = compression.decode(code, keys, message, decoder, density, (), row).index
        np.testing.assert_array_equal(index >= 0, has_members)
        assert abs(deviation(p, index[has_members])) < MAX_ERRORS
        assert abs(deviation(tempered(p), index[has_members])) > MAX_ERRORS


@pytest.mark.parametrize(("scheme", "num_decoders"), [("gls", 1), ("gls", 3), ("baseline", 3)])
def test_searches_agree_in_distribution_and_with_the_bound(scheme, num_decoders):
    """Match probability by both searches, and by the definition on arrays of fresh noise, with the lemma's bound."""
    count, num_candidates, num_bins = 10_000, 64, 4
    encoder, decoders = problem(count)
    decoders = [rows(d.mean, d.variance[0, 0]) for d in decoders[:num_decoders]]
    num_streams = num_decoders if scheme == "gls" else 1
    indices = jnp.arange(num_candidates)

    @jax.jit
    @jax.vmap
    def defined(key, encoder, *decoders):
        candidates = races.candidates(key, indices, 1)
        weigh = functools.partial(compression.gaussian_density.log_weight, ())
        log_weights = jnp.stack([weigh(row, candidates) for row in decoders])
        noise = races.exponentials(key, num_streams, num_candidates)
        bins = races.bins(key, indices, num_bins)
        return compression.match(noise, weigh(encoder, candidates), log_weights, bins)

    keys = compression.symbol_keys(jax.random.fold_in(KEY, 1), count)
    expected = defined(keys, encoder, *decoders)
    rate = np.mean(expected.matched)
    for search in SEARCHES:
        sent, received = outcome(search, num_decoders, num_candidates, num_bins, scheme)
        matched = np.any([result.index == sent.index for result in received], axis=0)
        error = np.sqrt(2 * rate * (1 - rate) / count)
        assert abs(matched.mean() - rate) < MAX_ERRORS * error
        distance = [np.abs(result.candidate[:, 0] - encoder.mean[:, 0]) for result in received]
        assert np.min(distance, axis=0).mean() < 1
    margin = np.asarray(expected.matched, float) - np.asarray(expected.bound)
    if scheme == "gls":
        assert margin.mean() > -MAX_ERRORS * margin.std() / count**0.5


@pytest.mark.parametrize("search", SEARCHES)
def test_one_decoder_is_the_baseline(search):
    one, other = outcome(search, 1, 64, 4), outcome(search, 1, 64, 4, "baseline")
    np.testing.assert_array_equal(one[0].index, other[0].index)
    np.testing.assert_array_equal(one[1][0].index, other[1][0].index)


@pytest.mark.parametrize("search", SEARCHES)
def test_neighbours_do_not_matter(search):
    """5,000 symbols in one call, in pieces across groups, alone, and in another order."""
    count, code = 5000, compression.ListCode(3, 64, 4, search=search)
    keys, (encoder, decoders) = compression.symbol_keys(KEY, count), problem(count)
    sent = compression.encode(code, keys, compression.gaussian_density, (), encoder)
    received = compression.decode(
        code, keys, sent.message, 1, compression.gaussian_density, (), decoders[1]
    )
    for part in (
        slice(0, 1),
        slice(7, 4200),
        slice(4999, None),
        np.random.default_rng(0).permutation(count),
    ):
        take = functools.partial(jax.tree.map, lambda x, part=part: x[part])
        again = compression.encode(
            code, keys[part], compression.gaussian_density, (), take(encoder)
        )
        np.testing.assert_array_equal(again.index, sent.index[part])
        again = compression.decode(
            code,
            keys[part],
            sent.message[part],
            1,
            compression.gaussian_density,
            (),
            take(decoders[1]),
        )
        np.testing.assert_array_equal(again.index, received.index[part])
    no_rows = jax.tree.map(lambda x: x[:0], encoder)
    none_sent = compression.encode(code, keys[:0], compression.gaussian_density, (), no_rows)
    assert none_sent.index.shape == (0,)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("sizes", [(1, 1), (33, 33)])
def test_smallest_sizes(search, sizes):
    sent, received = outcome(search, 2, *sizes, count=200, dimension=2)
    for result in received:
        assert (result.index >= 0).all() and (result.index < sizes[0]).all()
        assert result.candidate.shape == (200, 2)
    if sizes[0] == 1:
        assert (received[0].index == 0).all()
        assert (sent.message == 0).all()


def test_far_sources_find_their_nearest_candidates():
    """Weights of far sources underflow as probabilities; in logarithms the race still works."""
    keys, far = compression.symbol_keys(KEY, 50), rows(np.full((50, 1), 30.0), 0.001)
    draw = jax.vmap(lambda key: races.candidates(key, jnp.arange(64), 1)[:, 0])
    candidates = np.asarray(jax.jit(draw)(keys))
    for search in SEARCHES:
        code = compression.ListCode(3, 64, 4, search=search)
        sent = compression.encode(code, keys, compression.gaussian_density, (), far)
        assert (candidates[np.arange(50), sent.index] == candidates.max(1)).all()


@pytest.mark.parametrize("num_bins", [3, 64])
def test_any_page_gives_the_same_members(num_bins, monkeypatch):
    """The members of a bin are the candidates with that bin, for any page size and any N."""
    num_candidates = 9001
    code, key = compression.ListCode(1, num_candidates, num_bins, search="dense"), KEY
    expected = np.flatnonzero(
        np.asarray(races.bins(key, jnp.arange(num_candidates), num_bins)) == 2
    )
    members = jax.jit(functools.partial(dense_search.bin_members, code))(key, 2)
    for page_size in (256, 1024):
        monkeypatch.setattr(dense_search, "_page_size", lambda code, size=page_size: size)
        seen = []
        for page in range(-(-len(expected) // page_size)):
            numbers = page * page_size + np.arange(page_size)
            indices = dense_search._member_indices(code, members, jnp.asarray(numbers, jnp.int32))
            seen.append(np.asarray(indices)[numbers < len(expected)])
        assert sorted(np.concatenate(seen)) == list(expected)


def test_float32_zero_trap(monkeypatch):
    """The damage of 23-bit noise: a value of exactly 0 wins against every weight.

    512 symbols of 2^18 candidates: 16 zeros are expected, and none has probability 1e-7. The target sent is then unrelated
    to the source. With the library's noise a target 7 standard deviations away has probability 1e-11 per symbol.
    """
    code, count = compression.ListCode(1, 2**18, 64, search="dense"), 512
    keys = compression.symbol_keys(KEY, count)
    row = rows(np.random.default_rng(3).normal(size=(count, 1)), 0.001)

    def distances():
        """Distances of the encoder's picks from the source, in standard deviations of the target."""
        density = compression.Density(
            lambda shared, row, x: compression.gaussian_density.log_weight(shared, row, x)
        )
        sent = compression.encode(code, keys, density, (), row)
        candidate = jax.vmap(lambda key, index: races.candidates(key, index, 1))
        picked = candidate(keys, jnp.asarray(sent.index))
        return np.abs(np.asarray(picked) - row.mean)[:, 0] / 0.001**0.5

    def coarse(bits, more):
        return -jnp.log1p(-jnp.float32(2.0**-23) * (bits >> 9))

    exact = distances()
    assert exact.max() < 7
    monkeypatch.setattr(list_code_noise, "exponentials_from_bits", coarse)
    defective = distances()
    assert (defective > 7).any()
    # In dB, on the same noise.
    assert np.mean(20 * np.log10(defective)) > np.mean(20 * np.log10(exact)) + 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_candidates": 0}, "num_candidates: expected an int of at least 1, got 0"),
        ({"num_candidates": 2**30 + 1}, r"num_candidates: expected at most 2\^30"),
        ({"num_bins": 65}, r"num_bins: expected at most num_candidates \(64\), got 65"),
        ({"num_bins": -1}, "num_bins: expected an int of at least 1, got -1"),
        ({"num_decoders": 1.5}, "num_decoders: expected an int of at least 1"),
        ({"scheme": "lists"}, "scheme: expected one of gls, baseline, got 'lists'"),
        ({"search": "quick"}, "search: expected one of ordered, dense, got 'quick'"),
    ],
)
def test_bad_codes(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(compression.ListCode(2, 64, 4), **change)


CODE, ROWS = compression.ListCode(2, 64, 4), rows(np.zeros((3, 1)), 0.1)
WEIGHT, BOUND = compression.gaussian_density


def call(
    what="encode",
    keys=None,
    code=CODE,
    density=compression.gaussian_density,
    message=(0, 1, 2),
    decoder=0,
    row=ROWS,
):
    keys = compression.symbol_keys(KEY, 3) if keys is None else keys
    if what == "encode":
        return compression.encode(code, keys, density, (), row)
    return compression.decode(code, keys, message, decoder, density, (), row)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "decode", "decoder": 2}, r"decoder: expected one int within 0\.\.1, got 2"),
        (
            {"what": "decode", "message": (0, 1, 4)},
            r"message: expected bins within 0\.\.3, got 0 to 4",
        ),
        ({"what": "decode", "message": (0, 1, -1)}, "message: expected bins within"),
        ({"what": "decode", "message": (0.5, 1, 1)}, "message: expected ints of shape"),
        ({"what": "decode", "message": 1}, "message: expected ints of shape"),
        (
            {"what": "decode", "message": (0, 1)},
            r"message: expected arrays of one row per symbol \(3\), got \[2\]",
        ),
        (
            {"row": rows(np.zeros((2, 1)), 0.1)},
            r"rows: expected arrays of one row per symbol \(3\), got \[2, 1\]",
        ),
        (
            {"row": rows(np.zeros((3, 2)), 0.1)},
            r"rows: expected mean and variance of shape \[n, 1\], got \(2,\)",
        ),
        ({"row": rows(np.full((3, 1), np.nan), 0.1)}, "rows: expected finite values, got 3 others"),
        (
            {"row": compression.Normal([0, 0, 0], 0.1)},
            "rows: expected arrays of one row per symbol",
        ),
        ({"keys": KEY}, r"keys: expected shape \[n\], one per symbol, got \[\]"),
        ({"keys": np.zeros((3, 2), np.uint32)}, "key: expected a typed key from jax.random.key"),
        ({"code": "gls"}, "expected a ListCode and a Density, got str"),
        ({"density": WEIGHT}, "expected a ListCode and a Density, got ListCode and function"),
        (
            {"density": compression.Density(WEIGHT)},
            "search: expected 'dense' for weights without a known bound",
        ),
        (
            {"density": compression.Density(lambda *x: x[2], BOUND)},
            r"log_weight: expected weights \[B\]",
        ),
        (
            {"density": compression.Density(WEIGHT, lambda *x: x[1].mean)},
            "log_bound: expected one number per row",
        ),
    ],
)
def test_bad_calls(options, message):
    with pytest.raises(ValueError, match=message) as raised:
        call(**options)
    assert "\n" not in str(raised.value)


def test_bad_keys():
    for count in (-1, 2.5, None):
        with pytest.raises(ValueError, match="count: expected one int"):
            compression.symbol_keys(KEY, count)


@pytest.mark.parametrize("search", SEARCHES)
def test_candidates_without_a_weight(search):
    """NaN or zero, they are never picked. If there are no others the encoder raises, and a decoder has -1 and NaN."""
    code = compression.ListCode(2, 64, 1, search=search)
    density = compression.Density(
        lambda shared, row, x: jnp.where(
            x[:, 0] > row, 0.0, jnp.where(x[:, 0] > 0, jnp.nan, -jnp.inf)
        ),
        lambda shared, row: jnp.zeros(()),
    )
    possible, impossible = np.full(3, 0.5, np.float32), np.array([0.5, 9.0, 0.5], np.float32)
    sent = call(code=code, density=density, row=possible)
    received = call("decode", code=code, density=density, row=possible, message=sent.message)
    assert (received.candidate[:, 0] > 0.5).all()
    with pytest.raises(
        ValueError, match="log_weight: expected a positive weight for some candidate, got none at 1"
    ):
        call(code=code, density=density, row=impossible)
    received = call("decode", code=code, density=density, row=impossible, message=sent.message)
    assert received.index[1] == -1 and np.isnan(received.candidate[1, 0])
    assert (received.index[[0, 2]] >= 0).all()


def test_wide_normals_are_searched_in_full():
    """Variances of 1 and more have no largest weight: ordered search visits every candidate, and agrees with dense."""
    count = 4000
    keys, row = compression.symbol_keys(KEY, count), rows(np.zeros((count, 1)), 4.0)
    codes = [compression.ListCode(3, 64, 4, search=search) for search in SEARCHES]
    spread = []
    for code in codes:
        index = jnp.asarray(
            compression.encode(code, keys, compression.gaussian_density, (), row).index
        )
        picked = jax.vmap(lambda key, index: races.candidates(key, index, 1)[0])(keys, index)
        spread.append(np.asarray(picked) ** 2)
    error = np.sqrt(sum(values.var() for values in spread) / count)
    assert abs(spread[0].mean() - spread[1].mean()) < MAX_ERRORS * error
    assert min(values.mean() for values in spread) > 2


def test_match_without_weights():
    """A decoder that gives the encoder's candidate no weight adds nothing to the bound, and matches nothing."""
    noise, bins = races.exponentials(KEY, 2, 4), jnp.array([0, 1, 1, 1])
    only_first = jnp.array([0.0, -jnp.inf, -jnp.inf, -jnp.inf])
    all_others = jnp.array([-jnp.inf, 0, 0, 0])
    result = compression.match(noise, only_first, jnp.stack([all_others] * 2), bins)
    assert (int(result.sent), bool(result.matched), float(result.bound)) == (0, False, 0.0)
    assert (result.received == -1).all()
    result = compression.match(noise, only_first, jnp.stack([only_first, all_others]), bins)
    assert bool(result.matched) and float(result.bound) == 0.5
    for wrong_noise, log_weights, message in (
        (noise, jnp.zeros((3, 4)), r"one stream of noise, got \(2, 4\) and \(3, 4\)"),
        (noise, jnp.zeros(4), r"one stream of noise, got \(2, 4\) and \(4,\)"),
        (
            noise[:, :2],
            jnp.zeros((2, 4)),
            r"expected 4 candidates .* got shapes \(2, 2\), \(2, 4\), \(4,\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            compression.match(wrong_noise, only_first, log_weights, bins)
