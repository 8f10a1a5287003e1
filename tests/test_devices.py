"""Numbers do not depend on how many devices share the work: eight host devices in a process of their own."""

import json
import os
import subprocess
import sys

PROGRAM = """
import json, sys
import jax, numpy as np
from gls_jax import trials

CASES = (  # fewer pairs than devices, more, dividing and not; trials that divide and not
    ("gls", 1, 999, (1, 3)), ("gumbel_topk", 6, 1001, (2, 4)), ("specinfer", 8, 100, (1, 2)), ("poisson", 13, 77, (2,)),
)
for scheme, pairs, count, drafts in CASES:
    laws = jax.nn.log_softmax(2 * jax.random.normal(jax.random.key(pairs), (2, pairs, 7)))
    rows = []
    for devices in (1, 2, 4, 8):
        found = trials.sweep(jax.random.key(1), *laws, scheme=scheme, num_drafts=drafts, num_trials=count,
                             devices=jax.devices()[:devices])
        rows.append([np.rint(np.asarray(found.mean, np.float64) * count).astype(int).tolist(),
                     [bytes(np.asarray(x)).hex() for x in found]])
    print(json.dumps([scheme, count, rows]))
"""


def test_sweeps_are_the_same_on_any_number_of_devices():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 4
    for scheme, count, ((hits, bits), *others) in lines:
        assert all(0 < number < count for row in hits for number in row), (scheme, hits)
        assert len(others) == 3 and all(other == [hits, bits] for other in others), scheme
