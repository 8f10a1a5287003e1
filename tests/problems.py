"""Pairs of laws on which a scheme can go wrong, padded to one shape so that each scheme compiles once."""

import numpy as np

NUM_ITEMS, NUM_DRAFTS = 6, 4


def _pad(law):
    law = np.asarray(law, np.float64)
    return np.pad(law / law.sum(), (0, NUM_ITEMS - len(law)))


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
    """`count` random problems `[count, N]` of every kind a scheme can stumble over, in turn."""
    rng = np.random.default_rng(12)
    kinds = (
        lambda: rng.dirichlet(np.ones(NUM_ITEMS), 2),
        lambda: rng.dirichlet(np.full(NUM_ITEMS, 0.2), 2),
        lambda: rng.dirichlet(np.full(NUM_ITEMS, 5.0), 2),
        lambda: (rng.dirichlet(np.ones(NUM_ITEMS)),) * 2,  # p = q
        lambda: _split(rng),  # disjoint
        lambda: [_some(rng) for _ in range(2)],  # zero entries
        lambda: [
            np.where(rng.permutation(NUM_ITEMS) < 3, 0, 1) / 3 for _ in range(2)
        ],  # zeros and ties
        lambda: [(x := rng.integers(1, 3, NUM_ITEMS)) / x.sum() for _ in range(2)],  # ties
        lambda: [np.eye(NUM_ITEMS)[0]] * 2,  # one item
        lambda: [
            _pad(rng.dirichlet(np.ones(2))) for _ in range(2)
        ],  # two items: every list repeats itself
    )
    laws = np.array([kinds[at % len(kinds)]() for at in range(count)])
    laws = laws / laws.sum(-1, keepdims=True)
    return laws[:, 0], laws[:, 1]


def _some(rng):
    return rng.dirichlet(np.ones(NUM_ITEMS)) * (
        rng.permutation(NUM_ITEMS) < rng.integers(2, NUM_ITEMS)
    )


def _split(rng):
    law = rng.dirichlet(np.ones(NUM_ITEMS // 2))
    return np.pad(law, (0, NUM_ITEMS // 2)), np.pad(rng.permutation(law), (NUM_ITEMS // 2, 0))


def logs(law):
    with np.errstate(divide="ignore"):
        return np.log(law).astype(np.float32)
