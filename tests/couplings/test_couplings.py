"""Couplings of two laws with one sample each: marginals, match probabilities, invariance, and the bits on the wire.

All keys are fixed. Each statistical test fails a correct program with probability at most ALPHA for another key; there
are fewer than 3,000 of them, so the file's false-failure rate is below 3e-6.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gls_jax import bounds, couplings, races, schemes
from gls_jax.schemes import minhash
from tests import oracles
from tests.problems import NUM_ITEMS, PROBLEMS, logs

ALPHA = 1e-9
TRIALS = 8_000
KEY = jax.random.key(30)
COARSE, FINE = 0.3, 0.001  # epsilons: one whose caps bite, one whose caps are never met here


def random_pairs(count, num_items, seed=4):
    """Pairs from flat to peaked, some with zeros."""
    rng = np.random.default_rng(seed)
    laws = np.stack(
        [rng.dirichlet(np.full(num_items, c), 2) for c in 10 ** rng.uniform(-1, 1, count)]
    )
    laws[:, :, 0] += 1e-3
    laws *= rng.random(laws.shape) < np.where(np.arange(count) % 3, 1, 0.7)[:, None, None]
    laws[laws.sum(-1) == 0] = 1
    return laws / laws.sum(-1, keepdims=True)


PAIRS = np.concatenate(
    [np.stack([np.stack(pair) for pair in PROBLEMS.values()]), random_pairs(100, NUM_ITEMS)]
)
LOGS = logs(PAIRS)
KEYS = jax.random.split(KEY, len(PAIRS))

COUPLINGS = {
    "gumbel": (couplings.gumbel, couplings.gumbel_match),
    "weighted_minhash": (couplings.weighted_minhash, couplings.minhash_match),
    "maximal": (couplings.maximal, couplings.maximal_match),
}


def keys_of(key):
    return jax.random.split(key, TRIALS)


@cache
def simulator(coupling):
    """Samples `[pairs, T]` of both parties; one pair at a time, compiled once a coupling."""

    def pair(args):
        log_p, log_q, key = args
        return jax.vmap(lambda k: coupling(k, log_p, log_q))(keys_of(key))

    return jax.jit(lambda laws, keys: jax.lax.map(pair, (laws[:, 0], laws[:, 1], keys)))


def simulate(coupling, laws):
    return jax.tree.map(np.asarray, simulator(coupling)(laws, KEYS))


@cache
def samples(coupling):
    """On all pairs."""
    return simulate(coupling, LOGS)


def law_p_value(samples, law):
    assert samples.min() >= 0 and samples.max() < len(law)
    return oracles.chi_square(np.bincount(samples, minlength=len(law)), law)


def worst_p_value(coupling, match):
    """Smallest p-value over all pairs, of both marginals and of the match."""
    x, y = samples(coupling)
    hits, exact = (x == y).sum(1), np.asarray(jax.vmap(match)(LOGS[:, 0], LOGS[:, 1]))
    return min(
        min(
            law_p_value(x[m], p),
            law_p_value(y[m], q),
            oracles.binomial(hits[m], TRIALS, float(exact[m])),
        )
        for m, (p, q) in enumerate(PAIRS)
    )


each_coupling = pytest.mark.parametrize("name", COUPLINGS)


@each_coupling
def test_marginals_and_match(name):
    assert worst_p_value(*COUPLINGS[name]) > ALPHA


def on_the_proposal_noise(key, log_p, log_q):
    """A maximal coupling whose residual runs on the clocks that drew `x`."""
    x, kept = couplings.maximal(key, log_p, log_q)
    residual = jnp.log(jnp.maximum(jnp.exp(log_q) - jnp.exp(log_p), 0))
    again = races.winner(races.arrivals(races.exponentials(key, 1, log_p.shape[0])[0], residual))
    return couplings.Coupled(x, jnp.where(kept == x, x, again))


def test_planted_defect_is_caught():
    assert worst_p_value(on_the_proposal_noise, couplings.maximal_match) < ALPHA


@pytest.mark.parametrize(
    "coupling", [couplings.gumbel, couplings.weighted_minhash], ids=lambda f: f.__name__
)
def test_each_side_is_a_function_of_its_own_law(coupling):
    """Another law of the other party, the same key, the same sample; and it is what the party finds alone."""
    laws = np.stack([LOGS[:, 0], np.roll(LOGS[:, 1], 1, axis=0)], axis=1)
    (x, y), (x_again, y_rolled) = samples(coupling), simulate(coupling, laws)
    np.testing.assert_array_equal(x, x_again)
    assert (y != y_rolled).any()


@partial(jax.jit, static_argnums=(1, 2, 3))
def throw(keys, stream, count, num_items):
    return jax.vmap(lambda key: races.darts(races.stream_key(key, stream), 0, count, num_items))(
        keys
    )


def thrown(*args):
    """Items and heights `[len(keys), count]` of one stream."""
    return tuple(map(np.asarray, throw(*args)))


@pytest.mark.parametrize("num_items", [17, 5000])
def test_first_dart_is_the_first_of_the_stream(num_items):
    """Against one long array of darts, whatever the block: block edges, one item, sizes beyond a block."""
    law = random_pairs(1, num_items)[0, 0]
    keys = jax.random.split(KEY, 20)
    found = jax.jit(jax.vmap(couplings.first_dart, in_axes=(0, None)))(keys, logs(law))
    items, heights = thrown(keys, 0, 25 * num_items + 40, num_items)
    under = heights < np.exp(logs(law))[items]
    np.testing.assert_array_equal(found, items[np.arange(20), under.argmax(1)])


def test_one_item_and_laws_that_are_none():
    """One item takes two bits. NaN, or nothing at all, gives an item within range, not an endless search."""

    @jax.jit  # known values would be refused
    def draw(law):
        return *couplings.dart_protocol(KEY, law, law, COARSE), couplings.first_dart(KEY, law)

    for log_law in (0.0, -jnp.inf, jnp.nan):
        (x, y), bits, first = draw(jnp.full(1, log_law))
        assert int(x) == int(y) == int(first) == 0
        assert (int(bits) == 2) == (log_law == 0)


def test_residual_lost_to_rounding_falls_back_on_the_target():
    """`p` above `q` by one unit in the last place, everywhere: nothing is left to draw, and item 0 has no mass."""
    log_q = np.log(np.array([0, 0.25, 0.25, 0.5]) + 1e-300).astype(np.float32)
    log_p = log_q + np.float32(0.05)  # unnormalised on purpose: (q - p)+ is zero on every item
    both = jax.jit(
        jax.vmap(couplings.maximal, (0, None, None))
    )  # traced: known values would be refused
    _, y = both(keys_of(KEY), log_p, log_q)
    assert law_p_value(np.asarray(y), np.array([0, 0.25, 0.25, 0.5])) > ALPHA


# Exact match probabilities


def match_of_minhash(p, q, darts=200):
    """From the definition: sum over the items, and over which party is served first and when, dart by dart."""
    none = 1 - np.maximum(p, q).sum() / len(p)  # a dart under neither curve
    only_p, only_q = np.maximum(p - q, 0) / len(p), np.maximum(q - p, 0) / len(p)
    both, waiting, total = np.minimum(p, q) / len(p), 1.0, 0.0
    for _ in range(darts):
        total += waiting * (both.sum() + only_p @ q + only_q @ p)
        waiting *= none
    return total


def test_exact_values():
    """Against the definitions in float64, also where probabilities span twenty-five orders of magnitude."""
    values = {
        name: np.asarray(jax.vmap(match)(LOGS[:, 0], LOGS[:, 1]))
        for name, (_, match) in COUPLINGS.items()
    }
    exact = {
        "gumbel": [(q / oracles.rates(p, q)).sum() for p, q in PAIRS],
        "weighted_minhash": [match_of_minhash(p, q) for p, q in PAIRS],
        "maximal": np.minimum(PAIRS[:, 0], PAIRS[:, 1]).sum(-1),
    }
    for name in COUPLINGS:
        np.testing.assert_allclose(values[name], exact[name], atol=1e-6)
    log_p, log_q = jnp.log(jnp.array([1e-25, 0.0, 1.0])), jnp.log(jnp.array([0.25, 0.75, 0.0]))
    for match, tiny in (
        (couplings.gumbel_match, 1e-25),
        (couplings.minhash_match, 1e-25 * 1.25 / 2),
        (couplings.maximal_match, 1e-25),
    ):
        assert float(match(log_p, log_q)) == pytest.approx(tiny, rel=1e-5)


def test_order_of_the_couplings():
    """`(1 - TV) / (1 + TV) <= MinHash <= Gumbel <= 1 - TV` on 1,000 random pairs; Gumbel is GLS with one draft."""
    laws = logs(random_pairs(1000, 10))
    values = {
        name: np.asarray(jax.vmap(match)(laws[:, 0], laws[:, 1]))
        for name, (_, match) in COUPLINGS.items()
    }
    promised = np.asarray(jax.vmap(bounds.communication_free)(laws[:, 0], laws[:, 1]))
    assert (values["weighted_minhash"] >= promised - 1e-6).all()
    assert (values["gumbel"] >= values["weighted_minhash"] - 1e-6).all()
    assert (values["gumbel"] <= values["maximal"] + 1e-6).all()
    gls = jax.vmap(partial(schemes.get("gls").acceptance, num_drafts=1))(laws[:, 0], laws[:, 1])
    np.testing.assert_allclose(values["gumbel"], gls, atol=2e-6)


@each_coupling
def test_match_has_gradients(name):
    """Finite on every pair under jit and vmap, and the derivative, against central differences in float64."""
    match = COUPLINGS[name][1]
    slopes = jax.jit(jax.vmap(jax.grad(match, argnums=(0, 1))))(LOGS[:, 0], LOGS[:, 1])
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)
    with jax.enable_x64(True):
        at, to = np.random.default_rng(8).normal(size=(2, 2, NUM_ITEMS))
        value = jax.jit(lambda step: match(*jax.nn.log_softmax(jnp.asarray(at) + step * to)))
        slope = float(jax.grad(value)(0.0))
        assert slope == pytest.approx(
            (float(value(1e-5)) - float(value(-1e-5))) / 2e-5, rel=1e-5, abs=1e-8
        )


# Few bits


def rice(value, low_bits):
    """The codeword as a string: quotient in ones, a zero, then the low bits."""
    low = format(value % 2**low_bits, f"0{low_bits}b") if low_bits else ""
    return "1" * (value // 2**low_bits) + "0" + low


def read_rice(wire, low_bits):
    """First value on the wire, and what is left of the wire."""
    quotient = wire.index("0")
    rest = wire[quotient + 1 :]
    return quotient * 2**low_bits + int(rest[:low_bits] or "0", 2), rest[low_bits:]


def converse(p, q, epsilon, shared, offered, spare):
    """The protocol as it is told: two parties who see their own law, the darts, and the other's bits.

    `shared` and `offered` give the darts of streams 0 and 1, `spare` samples of `p` and `q`.
    """
    size = len(p)
    (cap, budget, _, _), low_bits = limits(size, epsilon), low_bits_of(size)
    wires = []  # every message, in order

    def under(law, dart):
        return dart[1] < law[dart[0]]

    alice = next((n for n in range(cap) if under(p, shared(n))), cap)
    wires.append(rice(alice, low_bits))
    heard, left = read_rice(wires[-1], low_bits)
    assert (heard, left) == (alice, "")
    if heard == cap:
        return *spare, wires
    x = shared(alice)[0]
    wires.append("1" if under(q, shared(heard)) else "0")
    if wires[-1] == "1":
        return x, shared(heard)[0], wires
    at = 0  # both know it: the first dart of stream 1 not spoken of
    while at < budget:
        gap = next((n for n in range(min(cap, budget - at)) if under(q, offered(at + n))), cap)
        wires.append(rice(gap, low_bits))
        heard, _ = read_rice(wires[-1], low_bits)
        at += heard
        if heard == cap:
            continue
        wires.append("0" if under(p, offered(at)) else "1")
        if wires[-1] == "1":
            return x, offered(at)[0], wires
        at += 1
    return x, spare[1], wires


@cache
def protocol(epsilon):
    return partial(couplings.dart_protocol, epsilon=epsilon)


def low_bits_of(num_items):
    return max(0, int(np.ceil(np.log2(num_items * np.log(2)))))


def limits(num_items, epsilon):
    """C, D and the longest a whole run can be: every dart of stream 1 refused, each right after the other."""
    cap, budget = (
        np.ceil(num_items * np.log(2 / epsilon)),
        np.ceil(2 * num_items / (np.e * epsilon)),
    )
    longest = couplings.dart_protocol_bits(num_items, epsilon)
    return int(cap), int(budget), longest, longest + 1 + budget * (longest + 1)


def check_the_story(log_p, log_q, epsilon, keys, got):
    """The same darts and explicit strings of bits: the same samples and the same number of bits, run by run."""
    num_items = len(log_p)
    cap, budget, longest, most = limits(num_items, epsilon)
    items, heights = zip(
        *(thrown(keys, stream, max(cap, budget), num_items) for stream in range(2)), strict=True
    )
    spare = np.stack(FALLBACK(keys, log_p, log_q), axis=1)
    (xs, ys), bits = got
    for n in range(len(keys)):
        shared, offered = (lambda t, k=k, n=n: (items[k][n, t], heights[k][n, t]) for k in range(2))
        x, y, wires = converse(np.exp(log_p), np.exp(log_q), epsilon, shared, offered, spare[n])
        assert (x, y, sum(map(len, wires))) == (xs[n], ys[n], bits[n])
        assert max(map(len, wires)) <= longest and bits[n] <= most


FALLBACK = jax.jit(
    jax.vmap(lambda k, p, q: couplings.gumbel(races.private_key(k), p, q), in_axes=(0, None, None))
)


@pytest.mark.parametrize("epsilon", [COARSE, FINE])
def test_protocol_follows_its_story_to_the_bit(epsilon):
    got = samples(protocol(epsilon))
    for m in range(0, 60, 1 if epsilon == COARSE else 3):
        keys = keys_of(KEYS[m])[:40]
        check_the_story(*LOGS[m], epsilon, keys, jax.tree.map(lambda a, m=m: a[m, :40], got))


def test_protocol_over_many_blocks():
    run = jax.jit(jax.vmap(protocol(COARSE), in_axes=(0, None, None)))
    keys = jax.random.split(KEY, 8)
    for log_p, log_q in logs(random_pairs(3, 5000)):
        check_the_story(
            log_p, log_q, COARSE, keys, jax.tree.map(np.asarray, run(keys, log_p, log_q))
        )


def test_protocol_marginals_and_match_with_caps_that_bite():
    """Exact laws: `d` = Alice escapes, `f` = Bob runs out of darts. `x` has law p; `y` and the match move by little."""
    cap, budget, _, most = limits(NUM_ITEMS, COARSE)
    (x, y), bits = samples(protocol(COARSE))
    assert bits.max() <= most
    for m, (p, q) in enumerate(PAIRS):
        distance, excess = np.abs(p - q).sum() / 2, np.maximum(p - q, 0)
        d, f = (1 - 1 / NUM_ITEMS) ** cap, (1 - distance / NUM_ITEMS) ** budget
        law = (1 - d) * (
            np.minimum(p, q) + (1 - f) * np.maximum(q - p, 0) + distance * f * q
        ) + d * q
        match = (1 - d) * (1 - distance + f * (excess * q).sum()) + d * float(
            couplings.gumbel_match(*LOGS[m])
        )
        assert np.abs(law - q).sum() / 2 <= COARSE / 2 and abs(match - 1 + distance) <= COARSE / 2
        assert law_p_value(x[m], p) > ALPHA and law_p_value(y[m], law) > ALPHA
        assert oracles.binomial((x[m] == y[m]).sum(), TRIALS, match) > ALPHA


def test_protocol_marginals_match_and_mean_with_caps_out_of_sight():
    """Marginals, `1 - TV` within epsilon, and a mean of about `2 b + 6` bits at most, however small TV is."""
    (x, y), bits = samples(protocol(FINE))
    for m, (p, q) in enumerate(PAIRS):
        assert law_p_value(x[m], p) > ALPHA and law_p_value(y[m], q) > ALPHA
        hits, match = (x[m] == y[m]).sum(), np.minimum(p, q).sum()
        assert scipy.stats.binom.cdf(hits, TRIALS, max(match - FINE / 2, 0)) > ALPHA
        assert scipy.stats.binom.sf(hits - 1, TRIALS, min(match + FINE / 2, 1)) > ALPHA
        assert bits[m].mean() - 6.2 * bits[m].std() / TRIALS**0.5 < 2 * low_bits_of(NUM_ITEMS) + 6


@pytest.mark.parametrize("name", ["plain", "peaked", "disjoint"])
def test_mean_number_of_bits(name):
    """Against the conversation over darts of another generator; Welch's test."""
    m, rng = list(PROBLEMS).index(name), np.random.default_rng(5)
    bits = samples(protocol(FINE))[1][m]

    def stream():
        darts = []

        def dart(n):
            while len(darts) <= n:
                darts.append((rng.integers(NUM_ITEMS), rng.random()))
            return darts[n]

        return dart

    spoken = [
        sum(map(len, converse(*PAIRS[m], FINE, stream(), stream(), (0, 0))[2])) for _ in range(3000)
    ]
    assert scipy.stats.ttest_ind(bits, spoken, equal_var=False).pvalue > ALPHA


def test_rice_code_is_a_prefix_code():
    for low_bits in range(4):
        words = [rice(value, low_bits) for value in range(40)]
        assert not any(a != b and b.startswith(a) for a in words for b in words)
        assert [read_rice(word + "1011", low_bits) for word in words] == [
            (value, "1011") for value in range(40)
        ]


def test_longest_message_is_short():
    """`log2 N + log2(1 / epsilon) + O(1)` bits."""
    for num_items in (1, 2, 3, 10, 1000, 50_000, 200_000):
        for epsilon in (0.9, 0.1, 1e-3):
            longest = couplings.dart_protocol_bits(num_items, epsilon)
            assert longest <= np.log2(num_items) + np.log2(1 / epsilon) + 5
            assert longest == len(rice(limits(num_items, epsilon)[0], low_bits_of(num_items)))


# The scheme


def test_scheme_is_the_coupling():
    """`minhash` behind the interface: the coupling's samples, its exact match, its bound, one law a draft."""
    scheme = minhash.SCHEME
    p, q = (logs(law) for law in PROBLEMS["plain"])

    def trial(key):
        drafts, rows = scheme.propose(key, p, 1), scheme.propose(key, p[None], 1)
        return drafts, rows, scheme.verify(key, drafts, p, q), couplings.weighted_minhash(key, p, q)

    drafts, rows, tokens, (x, y) = jax.jit(jax.vmap(trial))(jax.random.split(KEY, 500))
    assert drafts.shape == (500, 1) and drafts.dtype == tokens.dtype == jnp.int32
    for got, wanted in ((drafts[:, 0], x), (rows[:, 0], x), (tokens, y)):
        np.testing.assert_array_equal(got, wanted)
    exact = float(scheme.acceptance(p, q, 1))
    assert exact == pytest.approx(float(couplings.minhash_match(p, q)), abs=1e-6)
    assert exact == pytest.approx(float(scheme.acceptance(p[None], q, 1)), abs=1e-6)
    assert exact > float(scheme.exact.bound(p[None], q, 1)) > 0.5
    with pytest.raises(ValueError, match="scheme 'minhash' takes at most 1, got 2"):
        scheme.propose(KEY, p, 2)


# Bad input


@pytest.mark.parametrize(
    "function",
    [couplings.gumbel, couplings.weighted_minhash, couplings.maximal, protocol(0.1)],
    ids=["gumbel", "weighted_minhash", "maximal", "dart_protocol"],
)
@pytest.mark.parametrize(
    ("key", "p", "q", "message"),
    [
        (7, np.zeros(1), np.zeros(1), "typed key"),
        (jax.random.PRNGKey(0), np.zeros(1), np.zeros(1), "typed key"),
        (KEY, np.zeros((1, 1)), np.zeros(1), r"log_p: expected shape \[N\]"),
        (KEY, np.zeros(1), np.zeros(0), r"log_q: expected shape \[N\]"),
        (KEY, np.zeros(2), np.zeros(3), "same number of categories, got 2 and 3"),
        (KEY, "p", np.zeros(1), "log_p: expected an array of floats"),
    ],
)
def test_bad_input(function, key, p, q, message):
    with pytest.raises(ValueError, match=message) as caught:
        function(key, p, q)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "epsilon", [0.0, 1.0, -0.1, float("nan"), 1, "0.1", jnp.full((2, 2), 0.1), None, 1e-12]
)
def test_bad_epsilon(epsilon):
    with pytest.raises(ValueError, match=r"^epsilon: expected") as caught:
        couplings.dart_protocol(KEY, np.zeros(1), np.zeros(1), epsilon)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^epsilon: expected"):
        couplings.dart_protocol_bits(10, epsilon)


def test_other_bad_input():
    with pytest.raises(ValueError, match=r"log_weights: expected shape \[N\]"):
        couplings.first_dart(KEY, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="num_categories: expected an int of at least 1"):
        couplings.dart_protocol_bits(0, 0.1)
    with pytest.raises(ValueError, match="same number of categories"):
        couplings.gumbel_match(np.zeros(2), np.zeros(3))
