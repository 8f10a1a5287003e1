"""Numbers do not depend on how many devices share the work: eight host devices in a separate process."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from gls_jax import trials
from gls_jax.distributions import pairs
from gls_jax.studies import acceptance_study

STUDY = acceptance_study.Study(("gls",), (1, 2), 100, seed=1)
PAIRS = pairs.random(jax.random.key(0), 9, 5)
# As many pairs as devices: one a device would be no loop to XLA, and rounds in another way.
EIGHT = (
    acceptance_study.Study(("naive",), (1, 2, 3), 50, seed=0),
    pairs.random(jax.random.key(0), 8, 6),
)
PROGRAM = """
import json, sys
from pathlib import Path
import jax, numpy as np
from gls_jax import trials, work_shape
from gls_jax.studies import acceptance_study
from tests.studies.test_devices import STUDY, EIGHT, PAIRS

CASES = (  # scheme, pairs, categories, trials, list lengths, devices: what divides and not, by noise and by inversion
    ("gumbel_topk", 6, 7, 1001, (1, 3), (1, 2, 4, 8)), ("single", 1, 7, 999, (1,), (1, 8)),
    ("gls", 8, 40, 77, (2,), (1, 8)), ("gls", 1, 500, 3001, (4,), (1, 2, 4, 8)),
)
for scheme, pairs, size, count, drafts, numbers in CASES:
    log_probs = jax.nn.log_softmax(2 * jax.random.normal(jax.random.key(pairs), (2, pairs, size)))
    rows = []
    for platform in ("cpu", "cuda"):
        with work_shape.using(platform):
            rows += [trials.sweep(jax.random.key(1), *log_probs, scheme=scheme, num_drafts=drafts, num_trials=count,
                                  devices=jax.devices()[:number]) for number in numbers]
    bits = [[bytes(np.asarray(x)).hex() for x in row] for row in rows]
    print(json.dumps([scheme, np.asarray(rows[0].mean).tolist(), bits]))
acceptance_study.run(STUDY, PAIRS, Path(sys.argv[1]) / "nine")
acceptance_study.run(*EIGHT, Path(sys.argv[1]) / "eight")
"""


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What the program prints, and the folder of a study that it carries out."""
    folder = tmp_path_factory.mktemp("eight")
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], folder


def test_sweeps_are_the_same_on_any_number_of_devices(eight):
    lines, _ = eight
    assert [len(rows) for _, _, rows in lines] == [8, 4, 4, 8]  # in the shapes of both platforms
    for scheme, means, (alone, *shared) in lines:
        assert all(0 < mean < 1 for row in means for mean in row), (scheme, means)
        assert all(row == alone for row in shared), scheme


@pytest.mark.parametrize(("name", "arguments"), [("nine", (STUDY, PAIRS)), ("eight", EIGHT)])
def test_a_study_is_the_same_on_eight_devices(eight, tmp_path, name, arguments):
    """Nine pairs, so that shares are filled up: exact values and bounds bit for bit, too."""
    _, folder = eight
    assert len(jax.local_devices()) == 1
    acceptance_study.run(*arguments, tmp_path)
    for file in ("cells.npz", "acceptance.csv"):
        assert (tmp_path / file).read_bytes() == (folder / name / file).read_bytes(), file
    with np.load(tmp_path / "cells.npz") as cells:
        assert all(np.isfinite(cells[field]).all() for field in ("exact", "simulated"))
        assert np.isfinite(cells["bound"]).all() == (name == "nine")


@pytest.mark.parametrize("devices", [[], [0], jax.devices() * 2, 3])
def test_invalid_devices_are_refused(devices):
    with pytest.raises(ValueError, match="devices: expected"):
        trials.sweep(
            jax.random.key(0), *PAIRS, scheme="gls", num_drafts=(1,), num_trials=1, devices=devices
        )
