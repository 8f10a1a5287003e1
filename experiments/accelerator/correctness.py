"""The same functions on the device and on the CPU of another process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.timing import Line
from gls_jax import compression, couplings, decoding, losses, races, schemes, trials
from gls_jax.compression import GaussianCodec
from gls_jax.trials.trial_loop import Method

__all__ = ["compare", "values", "write_values"]

_SEED = 5
# On another kind of device exponentials and logarithms differ in the last bit, which decides a near
# tie here and there. More than this is a fault.
_MOST_DIFFERENT = 1e-3
_LARGEST_ERROR = 1e-4
_SMALL_SCHEMES = ("gls", "gumbel_topk", "specinfer")


def compare(is_small: bool) -> Iterator[Line]:
    """One line for each function: how its results here differ from those of the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "values.npz"
        process = _process_of_the_cpu(path, is_small)
        try:
            here = dict(values(is_small))  # both compute at the same time
            if process.wait() != 0:
                raise RuntimeError("the process on the CPU failed; its error is above")
        finally:
            process.kill()
            process.wait()
        with np.load(path) as file:
            expected = dict(file)
    for name, arrays in here.items():
        yield {"function": name} | _differences(name, arrays, expected)


def _process_of_the_cpu(path: Path, is_small: bool) -> subprocess.Popen[bytes]:
    """Another process, which computes the values and writes them."""
    code = (
        "from experiments.accelerator import correctness;"
        f"correctness.write_values({str(path)!r}, {is_small})"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


def write_values(path: str, is_small: bool) -> None:
    """Compute the values and write them to an `.npz` file."""
    arrays_by_name = {}
    for name, arrays in values(is_small):
        if isinstance(arrays, str):
            raise RuntimeError(f"{name}: {arrays}")
        for i, array in enumerate(arrays):
            arrays_by_name[f"{name}/{i}"] = array
    np.savez(path, allow_pickle=False, **arrays_by_name)


def _differences(
    name: str, arrays: list[np.ndarray] | str, expected: dict[str, np.ndarray]
) -> Line:
    """How arrays differ from those that are expected; why there are none, where that is so."""
    if isinstance(arrays, str):
        return {"error": arrays, "is_good": False}
    num_integers = num_different = num_other_shapes = 0
    largest_error = 0.0
    for i, array in enumerate(arrays):
        other = expected.get(f"{name}/{i}")
        if other is None or other.shape != array.shape:
            num_other_shapes += 1
        elif np.issubdtype(array.dtype, np.floating):
            # Equal infinities differ by nothing. NaN instead of a number is an infinite error.
            is_equal = (array == other) | (np.isnan(array) & np.isnan(other))
            difference = np.abs(array[~is_equal].astype(np.float64) - other[~is_equal])
            difference = np.where(np.isnan(difference), np.inf, difference)
            largest_error = max(largest_error, float(difference.max(initial=0)))
        else:
            num_integers += array.size
            num_different += int((array != other).sum())
    is_good = num_different <= _MOST_DIFFERENT * num_integers and largest_error <= _LARGEST_ERROR
    return {
        "integers": num_integers,
        "different_integers": num_different,
        "other_shapes": num_other_shapes,
        "largest_error": largest_error,
        "is_good": is_good and not num_other_shapes,
    }


def values(is_small: bool) -> Iterator[tuple[str, list[np.ndarray] | str]]:
    """The results of every function, as NumPy arrays; the error of one that fails."""
    for name, function in _functions(is_small).items():
        try:
            leaves = jax.tree.leaves(function())
            yield name, [np.asarray(leaf) for leaf in leaves]
        except Exception as error:  # the others can still be compared
            yield name, f"{type(error).__name__}: {error}"


def _pairs(num_pairs: int, num_categories: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities that no device computes: NumPy does, in float64."""
    logits = 2 * np.random.default_rng(_SEED).normal(size=(2, num_pairs, num_categories))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    log_p, log_q = log_probs.astype(np.float32)
    return log_p, log_q


def _functions(is_small: bool) -> dict[str, Callable[[], Any]]:
    size = 300 if is_small else 50_000
    num_trials = 200 if is_small else 20_000
    key = races.new_key(_SEED)
    log_p, log_q = _pairs(2, size)
    short_pairs = _pairs(8, 20)
    functions: dict[str, Callable[[], Any]] = {
        "races.first_arrivals": partial(
            races.first_arrivals, key, 8, jnp.asarray(log_p[0]), jnp.asarray(log_q[0])
        ),
        "couplings.weighted_minhash": partial(couplings.weighted_minhash, key, log_p[0], log_q[0]),
        "couplings.dart_protocol": partial(
            couplings.dart_protocol, key, log_p[0], log_q[0], epsilon=0.01
        ),
    }
    for name in _SMALL_SCHEMES if is_small else schemes.NAMES:
        scheme = schemes.get(name)
        most_drafts = min(scheme.max_drafts or 4, 4)
        for method in _methods(scheme):
            functions[f"{name} trials by {method}"] = partial(
                _accepted, key, *short_pairs, scheme, most_drafts, num_trials, method
            )
        for num_categories, pairs in ((20, short_pairs), (size, (log_p, log_q))):
            if scheme.acceptance_limit(num_categories, most_drafts) is None:
                functions[f"{name} exact, N={num_categories}"] = partial(
                    _exact, scheme, *pairs, most_drafts
                )
    for name in ("gls", "gumbel_topk"):
        scheme = schemes.get(name)
        functions[f"{name} trials, N={size}"] = partial(
            _accepted, key, log_p, log_q, scheme, 4, num_trials, None
        )
        functions[f"{name} loss and gradient"] = partial(_loss, name, log_p, log_q)
    # The bytes below are those of an ordered search.
    for search in ("dense",) if is_small else ("ordered", "dense"):
        functions[f"codec, {search}"] = partial(_code, key, search, is_small)
    functions["codec, bytes"] = partial(_bytes, is_small)
    functions["texts"] = partial(_texts, key, is_small)
    return functions


def _methods(scheme: schemes.Scheme) -> list[Method]:
    has_inversion = scheme.trials is not None and scheme.trials.inversion is not None
    return ["noise", "inversion"] if has_inversion else ["noise"]


def _accepted(key, log_p, log_q, scheme, num_drafts, num_trials, method):
    """The number of accepted trials of each pair."""
    found = trials.sweep(
        key,
        log_p,
        log_q,
        scheme=scheme,
        num_drafts=(num_drafts,),
        num_trials=num_trials,
        method=method,
    )
    return jnp.round(found.mean * num_trials).astype(jnp.int32)


def _exact(scheme, log_p, log_q, num_drafts):
    pairs = zip(log_p, log_q, strict=True)
    return [scheme.acceptance(p, q, num_drafts) for p, q in pairs]


def _loss(name, log_p, log_q):
    """Value and gradient."""

    def loss(draft):
        return losses.acceptance(draft, log_q, scheme=name, num_drafts=4).sum()

    return jax.value_and_grad(loss)(jnp.asarray(log_p))


def _code(key, search: str, is_small: bool):
    num_symbols = 100 if is_small else 4096
    code = compression.ListCode(3, 2**9 if is_small else 2**14, 16, search=search)
    means = np.random.default_rng(_SEED).normal(size=(num_symbols, 1)).astype(np.float32)
    keys = compression.symbol_keys(key, num_symbols)
    rows = compression.Normal(means, np.full_like(means, 0.01))
    side = compression.Normal(means, np.full_like(means, 0.3))
    density = compression.gaussian_density
    sent = compression.encode(code, keys, density, (), rows)
    received = compression.decode(code, keys, sent.message, 1, density, (), side)
    return sent.index, sent.message, received.index


def _bytes(is_small: bool):
    codec = GaussianCodec(2, 2**9 if is_small else 2**14, 16, 0.01, 0.5)
    source = np.random.default_rng(_SEED).normal(size=100 if is_small else 4096)
    blob = codec.encode(1, source.astype(np.float32))
    received = codec.decode(blob, source.astype(np.float32), 1)
    return np.frombuffer(blob, np.uint8), received.index


def _texts(key, is_small: bool):
    """Texts of a target that is a table: the same logits on every device."""
    table = 2 * np.random.default_rng(_SEED).normal(size=(50, 50)).astype(np.float32)
    model = decoding.from_function(_next_logits, jnp.asarray(table), 50)
    prompts = [[row, 1] for row in range(4 if is_small else 32)]
    found = []
    for name in ("gls",) if is_small else ("gls", "gumbel_topk", "traversal"):
        generation = decoding.generate(
            key,
            model,
            model,
            prompts,
            scheme=name,
            num_drafts=3,
            draft_length=2,
            max_new_tokens=6 if is_small else 40,
        )
        found.append(generation.tokens)
    return found


def _next_logits(table, tokens):
    return table[tokens]
