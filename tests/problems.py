"""Pairs of distributions on which a scheme can go wrong, of one shape: each scheme compiles once."""

import numpy as np

NUM_ITEMS, NUM_DRAFTS = 6, 4


def _pad(weights):
    weights = np.asarray(weights, np.float64)
    return np.pad(weights / weights.sum(), (0, NUM_ITEMS - len(weights)))


def _random(seed, concentration):
    return tuple(np.random.default_rng(seed).dirichlet(np.full(NUM_ITEMS, concentration), 2))


PROBLEMS = {
    "flat": _random(1, 3.0),
    "plain": _random(2, 1.0),
    "peaked": _random(3, 0.3),
    "equal": (_random(4, 1.0)[0],) * 2,
    "uniform": (np.full(NUM_ITEMS, 1 / NUM_ITEMS),) * 2,
    "ties": (_pad([0.1, 0.2, 0.3, 0.4]), _pad([0.2, 0.4, 0.15, 0.25])),
    "disjoint": (_pad([0.3, 0.7]), np.roll(_pad([0.6, 0.4]), 2)),
    "zeros in p": (_pad([0, 0.5, 0, 0.5]), _pad([0.4, 0.3, 0.2, 0.1])),
    "zeros in q": (_pad([0.4, 0.3, 0.2, 0.1]), _pad([0, 0.5, 0, 0.5])),
    "point mass p": (_pad([0, 1]), _pad([0.2, 0.5, 0.3])),
    "point mass q": (_pad([0.2, 0.5, 0.3]), _pad([0, 1])),
    "one item": (_pad([1]), _pad([1])),
    "fewer items than drafts": (_pad([0.9, 0.1]), _pad([0.3, 0.7])),
    "rare target": (_pad([1 - 3e-5, 1e-5, 2e-5]), _pad([0.5, 0.3, 0.2])),
}


def many(count):
    """`count` random pairs `[count, N]`, in turn of every kind that can be difficult for a scheme."""
    rng = np.random.default_rng(12)
    kinds = {
        "plain": lambda: rng.dirichlet(np.ones(NUM_ITEMS), 2),
        "peaked": lambda: rng.dirichlet(np.full(NUM_ITEMS, 0.2), 2),
        "flat": lambda: rng.dirichlet(np.full(NUM_ITEMS, 5.0), 2),
        "equal": lambda: [rng.dirichlet(np.ones(NUM_ITEMS))] * 2,
        "disjoint": lambda: _disjoint(rng),
        "zeros": lambda: [_with_zeros(rng) for _ in range(2)],
        "zeros and ties": lambda: [rng.permutation(NUM_ITEMS) >= 3 for _ in range(2)],
        "ties": lambda: [rng.integers(1, 3, NUM_ITEMS) for _ in range(2)],
        "one category": lambda: [np.eye(NUM_ITEMS)[0]] * 2,
        # Every longer list repeats itself.
        "two categories": lambda: [_pad(rng.dirichlet(np.ones(2))) for _ in range(2)],
    }
    makers = list(kinds.values())
    pairs = np.array([makers[i % len(makers)]() for i in range(count)], np.float64)
    pairs = pairs / pairs.sum(-1, keepdims=True)
    return pairs[:, 0], pairs[:, 1]


def _with_zeros(rng):
    probs = rng.dirichlet(np.ones(NUM_ITEMS))
    return probs * (rng.permutation(NUM_ITEMS) < rng.integers(2, NUM_ITEMS))


def _disjoint(rng):
    half = NUM_ITEMS // 2
    probs = rng.dirichlet(np.ones(half))
    return np.pad(probs, (0, half)), np.pad(rng.permutation(probs), (half, 0))


def logs(probs):
    """Log-probabilities in float32, `-inf` where the probability is zero."""
    with np.errstate(divide="ignore"):
        return np.log(probs).astype(np.float32)
