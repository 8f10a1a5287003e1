"""The core as users set JAX up: their modes, number types, meshes and transformations.

Most modes can only go wrong while a function is traced, so nothing is compiled for them: a program that is the same in
both modes gives the same numbers. Modes that have nothing to do with each other are tested together.
"""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gls_jax
from gls_jax import bounds, couplings, decomposition, losses, races, schemes, trials
from gls_jax.schemes import weighted_importance
from tests.core_calls import CALLS, DRAFTS, NUM_DRAFTS, P, Q
from tests.problems import logs

KEY = jax.random.key(3, impl="threefry2x32")
MODULES = (bounds, couplings, decomposition, losses, races, schemes, trials)
NO_ARRAYS = {  # public names of the core that no mode of JAX can touch, and why
    "races.LIGHTEST": "a number",
    "races.keys": "a module, whose functions are names of `races` or parts of them",
    "races.arrival_order": "a module of the list code's search (tests/test_modes_uses.py)",
    "couplings.dart_protocol_bits": "Python numbers",
    "decomposition.MOST_CATEGORIES": "a number",
    "decomposition.set_distribution": "NumPy alone",
    "decomposition.best_selection": "NumPy and SciPy alone",
    "schemes.NAMES": "words",
    "schemes.PATH_NAMES": "words",
    "schemes.get": "words",
    "schemes.branching": "NumPy alone",
    "schemes.chains": "part of every call of verify_tree",
    "schemes.chain_draft_index": "part of `chains`",
    "schemes.spectr.discount": "part of spectr's calls",
    "schemes.weighted_importance.truncated_at": "gives a scheme",
}
BY_SCHEME = {
    "SCHEME",
    "propose",
    "propose_among",
    "verify",
    "acceptance",
    "accepted",
    "inversion_trial",
    "verify_tree",
}  # called by the scheme


def public_names() -> Iterator[str]:
    """Of the core, without classes."""
    of_schemes = (getattr(schemes, name) for name in schemes.NAMES + schemes.PATH_NAMES)
    for module in (*MODULES, *of_schemes):
        for name in set(module.__all__) - BY_SCHEME:
            if not isinstance(getattr(module, name), type):
                yield f"{module.__name__.removeprefix('gls_jax.')}.{name}"


def test_every_public_function_is_called():
    called = {name.removesuffix(".gls") for name in CALLS}  # of trials.acceptance.gls
    missing = set(public_names()) - called - set(NO_ARRAYS)
    assert not missing, f"neither in tests/core_calls.py nor in NO_ARRAYS: {sorted(missing)}"
    assert not set(NO_ARRAYS) & called


def trace(name, log_p=P, log_q=Q, drafts=DRAFTS):
    return jax.make_jaxpr(CALLS[name])(KEY, log_p, log_q, drafts)


@cache
def plain(name):
    return trace(name)


def types(closed) -> list[tuple]:
    return [(value.shape, value.dtype) for value in closed.out_avals]


def equations(jaxpr) -> Iterator:
    """Also those of loops and of functions that are called."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("name", CALLS)
def test_settings_that_change_nothing(name):
    """Other default keys, other bits of `jax.random`, strict promotion: the same program.

    What `jax_threefry_partitionable` changes it changes in two primitives, when a program is lowered.
    """
    with (
        jax.default_prng_impl("rbg"),
        jax.threefry_partitionable(False),
        jax.numpy_dtype_promotion("strict"),
    ):
        found = trace(name)
    text, expected = (
        re.sub(r"0x[0-9a-f]+", "", str(closed)) for closed in (found, plain(name))
    )  # no addresses
    assert text == expected
    assert not {"random_bits", "random_split"} & {
        str(equation.primitive) for equation in equations(found.jaxpr)
    }


MOVES = {
    "broadcast_in_dim",
    "convert_element_type",
    "reshape",
}  # a Python number on its way to float32


@pytest.mark.parametrize("name", CALLS)
def test_x64_with_float32(name):
    """Results keep their types, and nothing is computed in float64: no bit of a result can change."""
    with jax.enable_x64(True):
        found = trace(name, drafts=DRAFTS.astype(np.uint8))
    assert types(found) == types(plain(name))
    for equation in equations(found.jaxpr):
        wide = any(getattr(value.aval, "dtype", None) == np.float64 for value in equation.outvars)
        assert not wide or str(equation.primitive) in MOVES, equation


@pytest.mark.parametrize("name", CALLS)
def test_x64_with_lists(name):
    """Lists are float64 then: what is computed from them is too, and noise and integers are what they always are."""
    lists = (values.tolist() for values in (P.astype(np.float64), Q.astype(np.float64), DRAFTS))
    with jax.enable_x64(True):
        found = jax.make_jaxpr(
            lambda key, *inputs: CALLS[name](key, *inputs), static_argnums=(1, 2, 3)
        )
        found = found(KEY, *map(tuple, lists))
    wide = not name.startswith("races.")
    expected = [
        (shape, np.float64 if wide and dtype == np.float32 else dtype)
        for shape, dtype in types(plain(name))
    ]
    assert types(found) == expected


@pytest.mark.parametrize("name", CALLS)
def test_half_precision_is_cast_up(name):
    found = trace(
        name, jnp.asarray(P, jnp.bfloat16), jnp.asarray(Q, jnp.float16), DRAFTS.astype(np.uint32)
    )
    assert types(found) == types(plain(name))


@pytest.mark.parametrize("name", CALLS)
def test_vmap_twice(name):
    lifted = jax.vmap(jax.vmap(CALLS[name], (0, None, None, None)), (None, 0, 0, None))
    found = jax.make_jaxpr(lifted)(
        races.split_key(KEY), np.stack([P, Q, P]), np.stack([Q, P, Q]), DRAFTS
    )
    assert types(found) == [((3, 2, *shape), dtype) for shape, dtype in types(plain(name))]


# Noise, couplings, exact values, a verification and trials; few, for these are compiled.
MEASURED = [name for name in CALLS if name.startswith("races.")] + [
    "list_sample",
    "couplings.gumbel",
    "couplings.first_dart",
    "bounds.list_matching_relaxed",
    "schemes.gls.acceptance",
    "schemes.specinfer.verify",
    "trials.sweep",
]
DEVICES = """
import json
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import jax.numpy as jnp
from gls_jax import losses, races, schemes, trials
from tests.core_calls import CALLS, DRAFTS, P, Q
from tests.test_modes import MEASURED

jax.config.update("jax_disable_most_optimizations", True)  # compiles in half the time
mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,))
split = PartitionSpec("devices")
keys = races.split_key(races.new_key(3))
arrays = keys, np.stack([P, Q]), np.stack([Q, P]), np.stack([DRAFTS, DRAFTS[::-1]])


def a_row_each(call):
    one = lambda *rows: jax.tree.map(lambda x: x[None], call(*(row[0] for row in rows)))
    return jax.jit(jax.shard_map(one, mesh=mesh, in_specs=split, out_specs=split))


refused = {}
for name, call in CALLS.items():
    try:
        a_row_each(call).trace(*arrays)
    except Exception as error:
        refused[name] = str(error)

measured = lambda *inputs: {name: CALLS[name](*inputs) for name in MEASURED}
alone = [jax.jit(measured)(*(array[row] for array in arrays)) for row in range(2)]
with jax.enable_x64(True), jax.default_prng_impl("rbg"), jax.threefry_partitionable(False):
    double = jax.jit(measured)(*(array[0] for array in arrays))
sharded = a_row_each(measured)(*arrays)
pairs = [(alone[0], double), *((alone[row], jax.tree.map(lambda x: x[row], sharded)) for row in range(2))]
same = lambda one, other: jax.tree.all(jax.tree.map(np.array_equal, one, other))
changed = [name for name in MEASURED if not all(same(one[name], other[name]) for one, other in pairs)]


def sweeps(place=lambda x: x):
    inputs = [place(array) for array in arrays[:3]]
    ask = {"scheme": "gls", "num_drafts": (1, 2), "num_trials": 99}
    return [np.asarray(trials.sweep(*inputs, **ask, method=method).mean).tolist() for method in ("noise", "inversion")]


found = {"no mesh": sweeps()}
for kind in (AxisType.Auto, AxisType.Explicit):
    theirs = jax.make_mesh((2,), ("theirs",), axis_types=(kind,))
    with jax.set_mesh(theirs):
        found[f"{kind.name} mesh"] = sweeps()
        split_by_them = NamedSharding(theirs, PartitionSpec("theirs"))
        found[f"{kind.name} mesh, sharded pairs"] = sweeps(lambda x: jax.device_put(x, split_by_them))

# Where JAX's own argsort gave the order, gradients of the acceptance itself were wrong.
SORTED_OTHERWISE = ("specinfer_wor", "weighted_importance")


def slopes(name, place=lambda f: f):
    # of the loss and of the acceptance, in what differs from device to device and in what all devices share
    scheme = schemes.get(name)
    num_drafts = min(scheme.max_drafts or 2, 2)
    loss = lambda *logits: losses.acceptance(*logits, scheme=name, num_drafts=num_drafts)
    plain = jax.vmap(lambda *laws: scheme.acceptance(*map(jax.nn.log_softmax, laws), num_drafts))
    parts = []
    for value in (loss, plain) if name in SORTED_OTHERWISE else (loss,):
        parts.append(lambda own, shared, value=value: value(own, jnp.broadcast_to(shared, own.shape)))
        parts.append(lambda own, shared, value=value: value(jnp.broadcast_to(shared, own.shape), own))
    total = lambda own, shared: sum(n * place(part)(own, shared).sum() for n, part in enumerate(parts, 1))
    return jax.jit(jax.grad(total, (0, 1)))(np.stack([P, Q]), Q[::-1])


each_device = lambda f: jax.shard_map(f, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split)
wrong = [
    name
    for name in ("gls", *SORTED_OTHERWISE)
    if not jax.tree.all(
        jax.tree.map(lambda x, y: np.allclose(x, y, atol=1e-5), slopes(name), slopes(name, each_device))
    )
]

explicit = jax.make_mesh((2,), ("theirs",), axis_types=(AxisType.Explicit,))
with jax.set_mesh(explicit):
    rows = jax.device_put(np.stack([P, Q]), NamedSharding(explicit, PartitionSpec("theirs")))
    try:
        losses.acceptance(rows, rows, scheme="gls", num_drafts=2)
    except ValueError as error:
        advice = str(error)

print(json.dumps([refused, changed, found, wrong, advice]))
"""


def test_two_devices():
    """Inside of `jax.shard_map` with its default checks, and beside a mesh that the caller has set: the same bits."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], capture_output=True, text=True, env=os.environ | flags
    )
    assert done.returncode == 0, done.stderr
    refused, changed, sweeps, wrong, advice = json.loads(done.stdout.splitlines()[-1])
    assert not refused
    assert not changed
    assert not wrong
    assert advice.startswith(
        "draft_logits: expected logits that are not split over an explicit mesh axis, got float32"
    )
    assert len(sweeps) == 5
    assert all(found == sweeps["no mesh"] for found in sweeps.values()), sweeps


def test_problems_along_an_explicit_axis():
    """`vmap` over an axis of an explicit mesh: gathers are JAX's to refuse there, and `auto_axes` its way around."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    rows, sharding = np.stack([P, Q]), PartitionSpec("x")
    acceptance = jax.vmap(
        lambda log_p, log_q: schemes.get("poisson").acceptance(log_p, log_q, NUM_DRAFTS)
    )
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, sharding)) for x in (rows, rows[::-1])]
        found = jax.sharding.auto_axes(acceptance, out_sharding=sharding)(*placed)
    np.testing.assert_array_equal(found, acceptance(rows, rows[::-1]))


def test_sweep_of_known_pairs_inside_jit():
    """Every input is known there, and still the trials are part of the program."""
    keys, log_p, log_q = races.split_key(KEY), jnp.stack([P, Q]), jnp.stack([Q, P])
    sweep = partial(trials.sweep, keys, log_p, log_q, scheme="gls", num_drafts=(2,), num_trials=64)
    np.testing.assert_array_equal(jax.jit(sweep)().mean, sweep().mean)


@pytest.mark.parametrize("name", [*schemes.NAMES, *schemes.PATH_NAMES])
def test_schemes_pickle(name):
    scheme = schemes.get(name)
    assert pickle.loads(pickle.dumps(scheme)) == scheme


def test_truncated_schemes_pickle():
    scheme = weighted_importance.truncated_at(8)
    copy = pickle.loads(pickle.dumps(scheme))
    assert copy == scheme and hash(copy) == hash(scheme)
    assert copy != weighted_importance.truncated_at(7)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gls_jax.list_sample(KEY, P, Q, NUM_DRAFTS),
        lambda: couplings.gumbel(KEY, P, Q),
        lambda: CALLS["schemes.poisson.verify_tree"](KEY, P, Q, DRAFTS),
        lambda: schemes.chains(DRAFTS[:, None]),
        lambda: trials.Estimate(np.float32(0.5), np.float32(0.1), 9),
        lambda: decomposition.best_selection([[0.5, 0.5]] * 2, [0.9, 0.1]),
        lambda: schemes.gumbel_topk.acceptance_interval(P, Q, (NUM_DRAFTS,)),
    ],
    ids=["ListSample", "Coupled", "Path", "Tree", "Estimate", "Selection", "Interval"],
)
def test_results_pickle(make):
    result = make()
    copy = pickle.loads(pickle.dumps(result))
    assert type(copy) is type(result) and jax.tree.structure(copy) == jax.tree.structure(result)
    assert jax.tree.all(jax.tree.map(np.array_equal, copy, result))


@pytest.mark.parametrize(
    "kind", [list, lambda x: x.astype(np.float64), tuple], ids=["list", "float64", "tuple"]
)
def test_inputs_that_are_no_jax_arrays(kind):
    log_p, log_q = kind(P), kind(Q)
    assert float(bounds.list_matching(log_p, log_q, 2)) == float(bounds.list_matching(P, Q, 2))
    assert schemes.get("poisson").acceptance(log_p, log_q, 2) == schemes.get("poisson").acceptance(
        P, Q, 2
    )
    assert couplings.gumbel(KEY, log_p, log_q) == couplings.gumbel(KEY, P, Q)


NOT_COMPILED = [
    name for name in CALLS if name.startswith(("bounds.", "couplings.", "decomposition."))
]


def test_debug_nans():
    """Zero probabilities make infinities, and none of them becomes NaN on the way, operation by operation.

    Of what is compiled as a whole JAX looks at the results alone, which other tests do.
    """
    log_p, log_q = logs(np.array([[0.5, 0.3, 0.2, 0, 0], [0.2, 0, 0.3, 0.5, 0]]))
    with jax.debug_nans(True):
        for name in NOT_COMPILED:
            CALLS[name](KEY, log_p, log_q, DRAFTS)
        for name in ("gls", "specinfer"):
            acceptance = schemes.get(name).acceptance
            assert jnp.all(
                jnp.isfinite(jnp.stack(jax.grad(acceptance, (0, 1))(log_p, log_q, NUM_DRAFTS)))
            )
        trials.acceptance(KEY, log_p, log_q, scheme="gls", num_drafts=NUM_DRAFTS, num_trials=10)
