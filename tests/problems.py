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


def logs(law):
    with np.errstate(divide="ignore"):
        return np.log(law).astype(np.float32)
