"""Couplings of two distributions: marginals, match probabilities, invariance, and the bits sent.

All keys are fixed. Each statistical test fails a correct program with probability at most ALPHA for
another key; there are fewer than 3,000 of them, so the file's false-failure rate is below 3e-6.
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
# Values of epsilon: the caps of the first are often met, those of the second never here.
COARSE, FINE = 0.3, 0.001


def random_pairs(count, size, seed=4):
    """Pairs `[count, 2, size]` from flat to peaked, some with zeros."""
    rng = np.random.default_rng(seed)
    concentrations = 10 ** rng.uniform(-1, 1, count)
    pairs = np.stack([rng.dirichlet(np.full(size, c), 2) for c in concentrations])
    pairs[:, :, 0] += 1e-3
    # In every third pair, about three of ten probabilities are zero.
    share_kept = np.where(np.arange(count) % 3, 1, 0.7)
    pairs *= rng.random(pairs.shape) < share_kept[:, None, None]
    pairs[pairs.sum(-1) == 0] = 1
    return pairs / pairs.sum(-1, keepdims=True)


PAIRS = np.concatenate([np.array(list(PROBLEMS.values())), random_pairs(100, NUM_ITEMS)])
LOG_PAIRS = logs(PAIRS)
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

    @jax.jit
    def all_pairs(log_pairs, keys):
        return jax.lax.map(pair, (log_pairs[:, 0], log_pairs[:, 1], keys))

    return all_pairs


def simulate(coupling, log_pairs):
    return jax.tree.map(np.asarray, simulator(coupling)(log_pairs, KEYS))


@cache
def samples(coupling):
    """On all pairs."""
    return simulate(coupling, LOG_PAIRS)


def on_pairs(function, log_pairs):
    """Values of a function of one pair on many."""
    return np.asarray(jax.vmap(function)(log_pairs[:, 0], log_pairs[:, 1]))


def marginal_p_value(samples, probs):
    assert samples.min() >= 0 and samples.max() < len(probs)
    return oracles.chi_square(np.bincount(samples, minlength=len(probs)), probs)


def worst_p_value(coupling, match):
    """Smallest p-value over all pairs, of both marginals and of the match."""
    x, y = samples(coupling)
    num_matches = (x == y).sum(1)
    exact = on_pairs(match, LOG_PAIRS)
    p_values = []
    for m, (p, q) in enumerate(PAIRS):
        p_values.append(marginal_p_value(x[m], p))
        p_values.append(marginal_p_value(y[m], q))
        p_values.append(oracles.binomial(num_matches[m], TRIALS, float(exact[m])))
    return min(p_values)


each_coupling = pytest.mark.parametrize("name", COUPLINGS)


@each_coupling
def test_marginals_are_exact_and_match_is_the_formula(name):
    assert worst_p_value(*COUPLINGS[name]) > ALPHA


def on_the_proposal_noise(key, log_p, log_q):
    """Planted defect: a maximal coupling whose residual uses the noise that drew `x`."""
    x, kept = couplings.maximal(key, log_p, log_q)
    residual = jnp.log(jnp.maximum(jnp.exp(log_q) - jnp.exp(log_p), 0))
    again = races.winner(races.arrivals(races.exponentials(key, 1, log_p.shape[0])[0], residual))
    return couplings.Coupled(x, jnp.where(kept == x, x, again))


def test_a_residual_on_the_noise_of_the_proposal_is_caught():
    assert worst_p_value(on_the_proposal_noise, couplings.maximal_match) < ALPHA


@pytest.mark.parametrize(
    "coupling", [couplings.gumbel, couplings.weighted_minhash], ids=lambda f: f.__name__
)
def test_each_sample_is_a_function_of_its_own_distribution(coupling):
    """With another distribution of Bob and the same key, Alice's sample is the same."""
    x, y = samples(coupling)
    rolled_log_q = np.roll(LOG_PAIRS[:, 1], 1, axis=0)
    x_again, rolled_y = simulate(coupling, np.stack([LOG_PAIRS[:, 0], rolled_log_q], axis=1))
    np.testing.assert_array_equal(x, x_again)
    assert (y != rolled_y).any()


@partial(jax.jit, static_argnums=(1, 2, 3))
def throw(keys, stream, count, size):
    def one_key(key):
        return races.darts(races.stream_key(key, stream), 0, count, size)

    return jax.vmap(one_key)(keys)


def thrown(*args):
    """Categories and heights `[len(keys), count]` of the darts of one stream."""
    return tuple(map(np.asarray, throw(*args)))


@pytest.mark.parametrize("size", [17, 5000])
def test_first_dart_is_the_first_of_the_stream(size):
    """Against one long array of darts, for sizes within a block and beyond it."""
    log_p = logs(random_pairs(1, size)[0, 0])
    keys = jax.random.split(KEY, 20)
    first = jax.jit(jax.vmap(couplings.first_dart, in_axes=(0, None)))(keys, log_p)
    categories, heights = thrown(keys, 0, 25 * size + 40, size)
    is_under = heights < np.exp(log_p)[categories]
    np.testing.assert_array_equal(first, categories[np.arange(20), is_under.argmax(1)])


def test_a_search_without_a_dart_ends():
    """One category takes two bits; NaN, or no mass at all, gives a category within range."""

    @jax.jit  # known values would be refused
    def draw(log_p):
        pair, bits = couplings.dart_protocol(KEY, log_p, log_p, COARSE)
        return pair, bits, couplings.first_dart(KEY, log_p)

    for log_prob in (0.0, -jnp.inf, jnp.nan):
        (x, y), bits, first = draw(jnp.full(1, log_prob))
        assert int(x) == int(y) == int(first) == 0
        assert (int(bits) == 2) == (log_prob == 0)


def test_a_residual_lost_to_rounding_falls_back_on_the_target():
    """With `p` above `q` everywhere nothing is left to draw; category 0 has no mass."""
    log_q = np.log(np.array([0, 0.25, 0.25, 0.5]) + 1e-300).astype(np.float32)
    log_p = log_q + np.float32(0.05)  # not normalised, on purpose: (q - p)+ is zero everywhere
    # Traced, because known values would be refused.
    maximal = jax.jit(jax.vmap(couplings.maximal, (0, None, None)))
    _, y = maximal(keys_of(KEY), log_p, log_q)
    assert marginal_p_value(np.asarray(y), np.array([0, 0.25, 0.25, 0.5])) > ALPHA


# Exact match probabilities


def match_of_minhash(p, q, num_darts=200):
    """From the definition, dart by dart: which party has the first dart under its curve, and when."""
    neither = 1 - np.maximum(p, q).sum() / len(p)
    only_p = np.maximum(p - q, 0) / len(p)
    only_q = np.maximum(q - p, 0) / len(p)
    both = np.minimum(p, q) / len(p)
    still_waiting = 1.0
    total = 0.0
    for _ in range(num_darts):
        total += still_waiting * (both.sum() + only_p @ q + only_q @ p)
        still_waiting *= neither
    return total


def test_match_probabilities_are_those_of_the_definitions():
    """In float64, also where probabilities span twenty-five orders of magnitude."""
    values = {name: on_pairs(match, LOG_PAIRS) for name, (_, match) in COUPLINGS.items()}
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


def test_the_couplings_are_ordered():
    """`(1 - TV) / (1 + TV) <= MinHash <= Gumbel <= 1 - TV` on 1,000 random pairs.

    And Gumbel is GLS with one draft.
    """
    log_pairs = logs(random_pairs(1000, 10))
    values = {name: on_pairs(match, log_pairs) for name, (_, match) in COUPLINGS.items()}
    promised = on_pairs(bounds.communication_free, log_pairs)
    assert (values["weighted_minhash"] >= promised - 1e-6).all()
    assert (values["gumbel"] >= values["weighted_minhash"] - 1e-6).all()
    assert (values["gumbel"] <= values["maximal"] + 1e-6).all()
    gls = on_pairs(partial(schemes.get("gls").acceptance, num_drafts=1), log_pairs)
    np.testing.assert_allclose(values["gumbel"], gls, atol=2e-6)


@each_coupling
def test_match_has_the_right_gradients(name):
    """Finite on every pair under jit and vmap; central differences in float64."""
    match = COUPLINGS[name][1]
    slopes = jax.jit(jax.vmap(jax.grad(match, argnums=(0, 1))))(LOG_PAIRS[:, 0], LOG_PAIRS[:, 1])
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)
    with jax.enable_x64(True):
        point, direction = np.random.default_rng(8).normal(size=(2, 2, NUM_ITEMS))

        @jax.jit
        def value(step):
            return match(*jax.nn.log_softmax(jnp.asarray(point) + step * direction))

        slope = float(jax.grad(value)(0.0))
        difference = (float(value(1e-5)) - float(value(-1e-5))) / 2e-5
        assert slope == pytest.approx(difference, rel=1e-5, abs=1e-8)


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


def converse(p, q, epsilon, shared, offered, fallback):
    """The protocol as its docstring tells it; returns `x`, `y` and every message in order.

    The two parties see their own distribution, the darts, and the other's bits. `shared` and
    `offered` give the darts of streams 0 and 1, `fallback` samples of `p` and `q`.
    """
    size = len(p)
    cap, budget, _, _ = limits(size, epsilon)
    low_bits = low_bits_of(size)
    messages = []

    def is_under(probs, dart):
        category, height = dart
        return height < probs[category]

    # Step 1: Alice's first dart; Bob decodes its number and answers.
    num_passed = next((n for n in range(cap) if is_under(p, shared(n))), cap)
    messages.append(rice(num_passed, low_bits))
    decoded, rest = read_rice(messages[-1], low_bits)
    assert (decoded, rest) == (num_passed, "")
    if decoded == cap:
        return *fallback, messages
    x = shared(num_passed)[0]
    messages.append("1" if is_under(q, shared(decoded)) else "0")
    if messages[-1] == "1":
        return x, shared(decoded)[0], messages
    # Step 2: both know `at`, the first dart of stream 1 that they have not passed over.
    at = 0
    while at < budget:
        darts_left = range(min(cap, budget - at))
        num_passed = next((n for n in darts_left if is_under(q, offered(at + n))), cap)
        messages.append(rice(num_passed, low_bits))
        decoded, _ = read_rice(messages[-1], low_bits)
        at += decoded
        if decoded == cap:
            continue
        messages.append("0" if is_under(p, offered(at)) else "1")
        if messages[-1] == "1":
            return x, offered(at)[0], messages
        at += 1
    return x, fallback[1], messages


@cache
def protocol(epsilon):
    return partial(couplings.dart_protocol, epsilon=epsilon)


def low_bits_of(size):
    return max(0, int(np.ceil(np.log2(size * np.log(2)))))


def limits(size, epsilon):
    """C, D, the longest message, and the longest run.

    The longest run refuses every dart of stream 1, each right after the other.
    """
    cap = np.ceil(size * np.log(2 / epsilon))
    budget = np.ceil(2 * size / (np.e * epsilon))
    longest = couplings.dart_protocol_bits(size, epsilon)
    return int(cap), int(budget), longest, longest + 1 + budget * (longest + 1)


@jax.jit
@partial(jax.vmap, in_axes=(0, None, None))
def fallback_samples(key, log_p, log_q):
    return couplings.gumbel(races.private_key(key), log_p, log_q)


def assert_follows_the_conversation(log_p, log_q, epsilon, keys, result):
    """Run by run: the same darts and explicit strings of bits give the same samples and bits."""
    size = len(log_p)
    cap, budget, longest, most = limits(size, epsilon)
    darts = [thrown(keys, stream, max(cap, budget), size) for stream in range(2)]
    fallback = np.stack(fallback_samples(keys, log_p, log_q), axis=1)
    (xs, ys), bits = result
    for run in range(len(keys)):

        def dart_of(stream, number, run=run):
            categories, heights = darts[stream]
            return categories[run, number], heights[run, number]

        x, y, messages = converse(
            np.exp(log_p),
            np.exp(log_q),
            epsilon,
            shared=partial(dart_of, 0),
            offered=partial(dart_of, 1),
            fallback=fallback[run],
        )
        assert (x, y, sum(map(len, messages))) == (xs[run], ys[run], bits[run])
        assert max(map(len, messages)) <= longest and bits[run] <= most


@pytest.mark.parametrize("epsilon", [COARSE, FINE])
def test_protocol_follows_its_description_to_the_bit(epsilon):
    result = samples(protocol(epsilon))
    for m in range(0, 60, 1 if epsilon == COARSE else 3):
        keys = keys_of(KEYS[m])[:40]
        first_runs = jax.tree.map(lambda x, m=m: x[m, :40], result)
        assert_follows_the_conversation(*LOG_PAIRS[m], epsilon, keys, first_runs)


def test_protocol_over_many_blocks_follows_its_description():
    run = jax.jit(jax.vmap(protocol(COARSE), in_axes=(0, None, None)))
    keys = jax.random.split(KEY, 8)
    for log_p, log_q in logs(random_pairs(3, 5000)):
        result = jax.tree.map(np.asarray, run(keys, log_p, log_q))
        assert_follows_the_conversation(log_p, log_q, COARSE, keys, result)


def test_protocol_with_caps_that_are_met_errs_by_at_most_half_epsilon():
    """Against the exact distribution of `y` and of the match; `x` is a sample of `p`."""
    cap, budget, _, most = limits(NUM_ITEMS, COARSE)
    (x, y), bits = samples(protocol(COARSE))
    assert bits.max() <= most
    for m, (p, q) in enumerate(PAIRS):
        distance = np.abs(p - q).sum() / 2
        escapes = (1 - 1 / NUM_ITEMS) ** cap  # Alice has no dart
        runs_out = (1 - distance / NUM_ITEMS) ** budget  # Bob has no dart left
        residual = (1 - runs_out) * np.maximum(q - p, 0) + runs_out * distance * q
        y_probs = (1 - escapes) * (np.minimum(p, q) + residual) + escapes * q
        late_match = runs_out * (np.maximum(p - q, 0) * q).sum()
        gumbel_match = float(couplings.gumbel_match(*LOG_PAIRS[m]))
        match = (1 - escapes) * (1 - distance + late_match) + escapes * gumbel_match
        assert np.abs(y_probs - q).sum() / 2 <= COARSE / 2
        assert abs(match - 1 + distance) <= COARSE / 2
        assert marginal_p_value(x[m], p) > ALPHA and marginal_p_value(y[m], y_probs) > ALPHA
        assert oracles.binomial((x[m] == y[m]).sum(), TRIALS, match) > ALPHA


def test_protocol_without_caps_is_nearly_maximal_for_few_bits():
    """Marginals, `1 - TV` within epsilon, and a mean of at most about `2 b + 6` bits for every TV."""
    (x, y), bits = samples(protocol(FINE))
    for m, (p, q) in enumerate(PAIRS):
        assert marginal_p_value(x[m], p) > ALPHA and marginal_p_value(y[m], q) > ALPHA
        num_matches = (x[m] == y[m]).sum()
        match = np.minimum(p, q).sum()
        assert scipy.stats.binom.cdf(num_matches, TRIALS, max(match - FINE / 2, 0)) > ALPHA
        assert scipy.stats.binom.sf(num_matches - 1, TRIALS, min(match + FINE / 2, 1)) > ALPHA
        standard_error = bits[m].std() / TRIALS**0.5
        assert bits[m].mean() - 6.2 * standard_error < 2 * low_bits_of(NUM_ITEMS) + 6


@pytest.mark.parametrize("name", ["plain", "peaked", "disjoint"])
def test_mean_number_of_bits_is_that_of_the_conversation(name):
    """With the darts of another generator; Welch's test."""
    m = list(PROBLEMS).index(name)
    rng = np.random.default_rng(5)
    _, bits = samples(protocol(FINE))

    def stream():
        darts = []

        def dart(n):
            while len(darts) <= n:
                darts.append((rng.integers(NUM_ITEMS), rng.random()))
            return darts[n]

        return dart

    sent = []
    for _ in range(3000):
        _, _, messages = converse(*PAIRS[m], FINE, stream(), stream(), fallback=(0, 0))
        sent.append(sum(map(len, messages)))
    assert scipy.stats.ttest_ind(bits[m], sent, equal_var=False).pvalue > ALPHA


def test_rice_code_is_a_prefix_code():
    for low_bits in range(4):
        words = [rice(value, low_bits) for value in range(40)]
        assert not any(a != b and b.startswith(a) for a in words for b in words)
        assert [read_rice(word + "1011", low_bits) for word in words] == [
            (value, "1011") for value in range(40)
        ]


def test_longest_message_is_short():
    """`log2 N + log2(1 / epsilon) + O(1)` bits."""
    for size in (1, 2, 3, 10, 1000, 50_000, 200_000):
        for epsilon in (0.9, 0.1, 1e-3):
            cap, _, longest, _ = limits(size, epsilon)
            assert longest <= np.log2(size) + np.log2(1 / epsilon) + 5
            assert longest == len(rice(cap, low_bits_of(size)))


# The scheme


def test_minhash_scheme_is_the_coupling():
    """The coupling's samples, its exact match and its bound, also with one distribution a draft."""
    scheme = minhash.SCHEME
    p, q = (logs(probs) for probs in PROBLEMS["plain"])

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
def test_bad_input_is_named_in_one_line(function, key, p, q, message):
    with pytest.raises(ValueError, match=message) as caught:
        function(key, p, q)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "epsilon", [0.0, 1.0, -0.1, float("nan"), 1, "0.1", jnp.full((2, 2), 0.1), None, 1e-12]
)
def test_bad_epsilon_is_named_in_one_line(epsilon):
    with pytest.raises(ValueError, match=r"^epsilon: expected") as caught:
        couplings.dart_protocol(KEY, np.zeros(1), np.zeros(1), epsilon)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^epsilon: expected"):
        couplings.dart_protocol_bits(10, epsilon)


def test_bad_input_of_other_functions_is_named():
    with pytest.raises(ValueError, match=r"log_weights: expected shape \[N\]"):
        couplings.first_dart(KEY, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="num_categories: expected an int of at least 1"):
        couplings.dart_protocol_bits(0, 0.1)
    with pytest.raises(ValueError, match="same number of categories"):
        couplings.gumbel_match(np.zeros(2), np.zeros(3))
