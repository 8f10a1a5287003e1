"""Peak memory, measured in a separate process: long work needs no more than short work."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from gls_jax import compression, trials
from gls_jax.distributions import pairs
from gls_jax.studies import acceptance_study
from experiments.bench.timing import peak_megabytes

key = jax.random.key(0)
two_pairs = pairs.random(key, 2, 16)

def sweep(size):
    trials.sweep(key, *two_pairs, scheme="gls", num_drafts=(1, 4), num_trials=size)

def pair_blocks(size):
    study = acceptance_study.Study(("naive",), (1, 2), 1000, seed=0)
    acceptance_study.run(study, pairs.random(key, size, 6), pathlib.Path(sys.argv[1]) / str(size))

code = compression.ListCode(num_decoders=2, num_candidates=2**12, num_bins=8, search="ordered")

def symbols(size):
    row = compression.Normal(np.zeros((size, 1), np.float32), np.full((size, 1), 0.01, np.float32))
    compression.encode(code, compression.symbol_keys(key, size), compression.gaussian_density, (), row)

for work, small, large in ((sweep, 2**10, 2**19), (pair_blocks, 1600, 3200), (symbols, 2**12, 2**14)):
    work(small), work(small)
    before = peak_megabytes()
    work(large)
    print(json.dumps([work.__name__, before, peak_megabytes()]))
"""


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    """Peak megabytes after short and after long work."""
    folder = str(tmp_path_factory.mktemp("memory"))
    done = subprocess.run([sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: (short, long) for name, short, long in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize(
    ("work", "allowed"),
    [
        # The noise of all trials at once would take 134 MB.
        ("sweep", 10),
        # All trials of twice as many pairs at once would take 307 MB. The allocator's peak stops growing
        # after some thousand pairs.
        ("pair_blocks", 60),
        # The candidates of all symbols at once would take 268 MB.
        ("symbols", 25),
    ],
)
def test_peak_does_not_grow(peaks, work, allowed):
    short, long = peaks[work]
    assert long - short < allowed, (short, long)
