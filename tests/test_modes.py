"""The core as users set JAX up: their modes, number types, meshes and transformations.

Most modes can only go wrong while a function is traced, so nothing is compiled for them: a program that is the same in
both modes gives the same numbers.
"""

import os
import pickle
import re
import subprocess
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import bounds, couplings, races, schemes, trials
from gls_jax.schemes import weighted_importance
from tests.core_calls import CALLS, DRAFTS, P, Q
from tests.problems import logs

KEY = jax.random.key(3, impl="threefry2x32")
HALVES = (jnp.bfloat16, jnp.float16)


def program(name, log_p=P, log_q=Q, drafts=DRAFTS):
    """What a call is lowered to, without the addresses of callbacks."""
    text = jax.jit(CALLS[name]).lower(KEY, log_p, log_q, drafts).as_text()
    return re.sub(r"0x[0-9a-f]+|\b\d{12,}\b", "", text)


@cache
def plain(name):
    return program(name)


@cache
def types(name):
    return jax.eval_shape(CALLS[name], KEY, P, Q, DRAFTS)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "mode",
    [lambda: jax.default_prng_impl("rbg"), lambda: jax.threefry_partitionable(False)],
    ids=["rbg", "not partitionable"],
)
def test_noise_does_not_depend_on_settings(name, mode):
    with mode():
        assert program(name) == plain(name)


@pytest.mark.parametrize("name", CALLS)
def test_strict_promotion(name):
    with jax.numpy_dtype_promotion("strict"):
        assert jax.eval_shape(CALLS[name], KEY, P, Q, DRAFTS) == types(name)


@pytest.mark.parametrize("name", CALLS)
def test_x64_with_float32(name):
    """Not a number more than float32: every output has the type that it has without x64."""
    with jax.enable_x64(True):
        found = jax.eval_shape(CALLS[name], KEY, P, Q, DRAFTS)
    for here, there in zip(jax.tree.leaves(types(name)), jax.tree.leaves(found), strict=True):
        assert here.shape == there.shape
        assert here.dtype == there.dtype or jnp.issubdtype(here.dtype, jnp.integer)


@pytest.mark.parametrize("name", CALLS)
def test_x64_with_float64(name):
    with jax.enable_x64(True):
        found = jax.eval_shape(CALLS[name], KEY, P.astype(np.float64), Q.astype(np.float64), DRAFTS.astype(np.int64))
    assert [x.shape for x in jax.tree.leaves(found)] == [x.shape for x in jax.tree.leaves(types(name))]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_cast_up(name, dtype):
    found = jax.eval_shape(CALLS[name], KEY, jnp.asarray(P, dtype), jnp.asarray(Q, dtype), DRAFTS)
    assert all(x.dtype not in HALVES for x in jax.tree.leaves(found))


@pytest.mark.parametrize("name", CALLS)
def test_drafts_of_any_integer_type(name):
    for dtype in (np.uint8, np.uint32, np.int8):
        assert jax.eval_shape(CALLS[name], KEY, P, Q, DRAFTS.astype(dtype)) == types(name)


@pytest.mark.parametrize("name", CALLS)
def test_vmap_twice(name):
    lifted = jax.vmap(jax.vmap(CALLS[name], (0, None, None, None)), (None, 0, 0, None))
    found = jax.eval_shape(lifted, jax.random.split(KEY, 2), np.stack([P, Q, P]), np.stack([Q, P, Q]), DRAFTS)
    for one, many in zip(jax.tree.leaves(types(name)), jax.tree.leaves(found), strict=True):
        assert many.shape == (3, 2, *one.shape)


SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import AxisType, PartitionSpec
from gls_jax import schemes, trials
from tests.core_calls import CALLS, DRAFTS, P, Q

mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,))
keys = jax.random.split(jax.random.key(3), 2)
arrays = keys, np.stack([P, Q]), np.stack([Q, P]), np.stack([DRAFTS, DRAFTS[::-1]])
split = PartitionSpec("devices")
failed = []
for name, call in CALLS.items():
    one = lambda *rows, call=call: jax.tree.map(lambda x: x[None], call(*(row[0] for row in rows)))
    try:
        jax.jit(jax.shard_map(one, mesh=mesh, in_specs=split, out_specs=split)).trace(*arrays)
    except Exception as error:
        failed.append(f"{name}: {error}")

kinds = {"none": None, "auto": AxisType.Auto, "explicit": AxisType.Explicit}
rows = {}
for kind, axis_type in kinds.items():
    ask = {"scheme": "gls", "num_drafts": (1, 2), "num_trials": 99}
    run = lambda: np.asarray(trials.sweep(keys[0], *arrays[1:3], **ask).mean)
    if axis_type is None:
        rows[kind] = run()
        continue
    with jax.set_mesh(jax.make_mesh((2,), ("mine",), axis_types=(axis_type,))):
        rows[kind] = run()
if any((row != rows["none"]).any() for row in rows.values()):
    failed.append(f"a mesh of the caller's changes a sweep: {rows}")
print("\\n".join(failed))
sys.exit(bool(failed))
"""


def test_two_devices():
    """Inside of `jax.shard_map` with its default checks, and beside a mesh that the caller has set."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, env=os.environ | flags)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [*schemes.NAMES, *schemes.PATH_NAMES])
def test_schemes_pickle(name):
    scheme = schemes.get(name)
    assert pickle.loads(pickle.dumps(scheme)) == scheme


def test_truncated_schemes_pickle():
    scheme = weighted_importance.truncated_at(8)
    copy = pickle.loads(pickle.dumps(scheme))
    assert copy == scheme and hash(copy) == hash(scheme)
    assert copy != weighted_importance.truncated_at(7)


@pytest.mark.parametrize("kind", [list, lambda x: x.astype(np.float64), tuple], ids=["list", "float64", "tuple"])
def test_inputs_that_are_no_jax_arrays(kind):
    log_p, log_q = kind(P), kind(Q)
    assert float(bounds.list_matching(log_p, log_q, 2)) == float(bounds.list_matching(P, Q, 2))
    assert schemes.get("poisson").acceptance(log_p, log_q, 2) == schemes.get("poisson").acceptance(P, Q, 2)
    assert couplings.gumbel(KEY, log_p, log_q) == couplings.gumbel(KEY, P, Q)


def test_debug_nans():
    """Zero probabilities make infinities, and none of them becomes NaN on the way."""
    log_p, log_q = logs(np.array([[0.5, 0.5, 1e-30, 0, 0], [0.2, 0, 0, 0.5, 0.3]]))
    with jax.debug_nans(True):
        assert 0 < float(schemes.get("gls").acceptance(log_p, log_q, 2)) < 1
        trials.acceptance(KEY, log_p, log_q, scheme="gls", num_drafts=2, num_trials=10)
        races.leaders(KEY, 2, jnp.asarray(log_p))
