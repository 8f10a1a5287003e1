"""The door: bad input gets one line that names what was got and what was expected.

Shapes and ranges are checked before tracing and always raise ``ValueError``. Values are checked by
:func:`check_log_probs`, at once on arrays and through `checkify` inside a traced function.
"""

from __future__ import annotations

import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

__all__ = ["check_log_probs"]


def check_log_probs(log_probs, name: str = "log_probs", *, atol: float = 1e-3) -> None:
    """Check that `log_probs` holds log-probabilities: no NaN, nothing above 0, sum 1 on the last axis.

    On concrete arrays the error is raised at once. Under `jit` the check is a `checkify.check`: wrap the jitted
    function with `jax.experimental.checkify.checkify` and call `error.throw()`.

    Args:
        log_probs: `f[..., N]`, `-inf` where the probability is zero.
        name: how the error calls the array.
        atol: allowed error of the sum, a probability. The default lets pass what float32 makes of 200,000 items.

    Raises:
        ValueError: what is wrong, and in which row.

    >>> import jax.numpy as jnp, gls_jax
    >>> gls_jax.check_log_probs(jnp.log(jnp.array([0.25, 0.75])))
    >>> gls_jax.check_log_probs(jnp.log(jnp.array([0.25, 0.25])), "log_q")
    Traceback (most recent call last):
    ...
    ValueError: log_q: expected probabilities that sum to 1 (within 0.001), got a sum of 0.5
    """
    log_probs = floats(log_probs, name)
    if log_probs.ndim < 1 or log_probs.shape[-1] < 1:
        raise ValueError(f"{name}: expected shape [..., N] with N >= 1, got {list(log_probs.shape)}")
    if isinstance(log_probs, jax.core.Tracer):
        total = jnp.exp(jax.nn.logsumexp(log_probs, axis=-1))
        checkify.check(~jnp.isnan(log_probs).any(), f"{name}: expected log-probabilities, got NaN")
        checkify.check(
            (log_probs <= atol).all(), f"{name}: expected log-probabilities of at most 0, got a positive one"
        )
        checkify.check(
            (jnp.abs(total - 1) <= atol).all(), f"{name}: expected probabilities that sum to 1 (within {atol:g})"
        )
        return
    rows = np.asarray(log_probs, np.float64).reshape(-1, log_probs.shape[-1])
    with np.errstate(over="ignore"):
        totals = np.exp(rows).sum(-1)
    faults = (
        (np.isnan(rows).any(-1), lambda row: "expected log-probabilities, got NaN"),
        ((rows > atol).any(-1), lambda row: f"expected log-probabilities of at most 0, got {rows[row].max():.6g}"),
        (
            ~(np.abs(totals - 1) <= atol),
            lambda row: f"expected probabilities that sum to 1 (within {atol:g}), got a sum of {totals[row]:.6g}",
        ),
    )
    for bad, message in faults:
        if bad.any():
            row = int(np.argmax(bad))
            index = np.unravel_index(row, log_probs.shape[:-1])
            where = f"[{', '.join(str(int(i)) for i in index)}]" if index else ""
            raise ValueError(f"{name}{where}: {message(row)}")


def count(value, name: str) -> int:
    """A positive Python int; sizes shape arrays, so they cannot be traced."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        got = "a traced value" if isinstance(value, jax.core.Tracer) else repr(value)
        raise ValueError(f"{name}: expected an int of at least 1 known before tracing, got {got}") from None
    if number < 1:
        raise ValueError(f"{name}: expected an int of at least 1, got {number}")
    return number


def index(value, name: str, last: int = 2**32 - 2):
    """One index of at least 0, an int or a traced integer; a float would be cut to one, and share its clocks."""
    if isinstance(value, jax.core.Tracer):
        good = value.shape == () and jnp.issubdtype(value.dtype, jnp.integer)
        got = f"{value.dtype} of shape {list(value.shape)}"
    else:
        try:
            good, got = not isinstance(value, bool) and 0 <= operator.index(value) <= last, repr(value)
        except TypeError:
            good, got = False, type(value).__name__ if np.ndim(value) or value is None else repr(value)
    if not good:
        raise ValueError(f"{name}: expected one int within 0..{last}, got {got}")
    return value


def active_of(num_active, num_drafts) -> tuple[int, int]:
    """How many of the drafts are still in play."""
    num_drafts, num_active = count(num_drafts, "num_drafts"), count(num_active, "num_active")
    if num_active > num_drafts:
        raise ValueError(f"num_active: expected at most num_drafts ({num_drafts}), got {num_active}")
    return num_active, num_drafts


def one_of(value, names: tuple[str, ...], name: str) -> str:
    """One of some words."""
    if value not in names:
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}")
    return value


def local_devices(values) -> list[jax.Device]:
    """Devices of this process, at least one, each once."""
    try:
        devices = list(values)
    except TypeError:
        raise ValueError(f"devices: expected a sequence of devices, got {values!r}") from None
    known = [isinstance(device, jax.Device) and device.process_index == jax.process_index() for device in devices]
    if not devices or not all(known) or len(set(devices)) < len(devices):
        raise ValueError(f"devices: expected some of this process, each once, got {devices}")
    return devices


def key(value) -> None:
    """One typed threefry key: another generator would give other clocks to the other party."""
    if not (isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)):
        got = f"{type(value).__name__}" + (f" of dtype {value.dtype}" if hasattr(value, "dtype") else "")
        raise ValueError(f"key: expected a typed key from jax.random.key(seed), got {got}")
    if value.shape != ():
        raise ValueError(f"key: expected one key of shape [], got shape {list(value.shape)}; lift with jax.vmap")
    if str(jax.random.key_impl(value)) != "threefry2x32":
        raise ValueError(f"key: expected impl 'threefry2x32', got {str(jax.random.key_impl(value))!r}")


def floats(value, name: str) -> jax.Array:
    """A float array of at least 32 bits: races and laws are never computed in less."""
    try:
        array = jnp.asarray(value if isinstance(value, jax.Array) else np.asarray(value))
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected an array of floats, got {type(value).__name__}") from None
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise ValueError(f"{name}: expected an array of floats, got dtype {array.dtype}")
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def law(value, name: str) -> jax.Array:
    """One law, `f[N]`."""
    array = floats(value, name)
    if array.ndim != 1 or array.shape[0] < 1:
        raise ValueError(f"{name}: expected shape [N] with N >= 1, got {list(array.shape)}")
    return array


def draft_laws(value, num_drafts: int, *, diverse: bool = True, owner: str = "") -> jax.Array:
    """The drafter's law `f[N]`, or where `diverse` allows it one law a draft, `f[K, N]`."""
    array = floats(value, "log_p")
    if array.ndim == 2 and not diverse:
        raise ValueError(f"log_p: {owner} draws its list from one law, expected shape [N], got {list(array.shape)}")
    if array.ndim not in (1, 2) or array.shape[-1] < 1:
        raise ValueError(f"log_p: expected shape [N] or [K, N] with N >= 1, got {list(array.shape)}")
    if array.ndim == 2 and array.shape[0] != num_drafts:
        raise ValueError(f"log_p: expected {num_drafts} rows (num_drafts), got shape {list(array.shape)}")
    return array


def laws(value, count: int, name: str) -> jax.Array:
    """`count` laws, `f[count, N]`."""
    array = floats(value, name)
    if array.ndim != 2 or array.shape[0] != count or array.shape[1] < 1:
        raise ValueError(f"{name}: expected shape [{count}, N] with N >= 1, got {list(array.shape)}")
    return array


def not_probabilities(log_law: jax.Array, name: str) -> None:
    """Log-probabilities are not above 0; values can be looked at only where they are not traced."""
    if not isinstance(log_law, jax.core.Tracer) and (most := np.max(np.asarray(log_law))) > 1e-3:
        raise ValueError(f"{name}: expected log-probabilities, got a value of {most:.6g}")


def same_items(log_p: jax.Array, log_q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both laws over one set of items, in their common float type."""
    if log_p.shape[-1] != log_q.shape[-1]:
        raise ValueError(
            f"log_p and log_q: expected the same number of items, got {log_p.shape[-1]} and {log_q.shape[-1]}"
        )
    dtype = jnp.promote_types(log_p.dtype, log_q.dtype)
    return log_p.astype(dtype), log_q.astype(dtype)


def counts(values, name: str) -> tuple[int, ...]:
    """A sequence of positive ints, at least one."""
    try:
        numbers = tuple(values)
    except TypeError:
        raise ValueError(f"{name}: expected a sequence of ints, got {values!r}") from None
    if not numbers:
        raise ValueError(f"{name}: expected at least one K, got none")
    return tuple(count(number, name) for number in numbers)


def tokens(value: jax.Array, num_items: int, name: str) -> None:
    """Tokens within the vocabulary; values can be looked at only where they are not traced."""
    if isinstance(value, jax.core.Tracer) or not value.size:
        return
    found = np.asarray(value)  # NumPy: inside `jit` even a constant's `jnp` operations are traced
    if found.min() < 0 or found.max() >= num_items:
        raise ValueError(f"{name}: expected tokens within 0..{num_items - 1}, got {found.min()} to {found.max()}")


def possible_tokens(value: jax.Array, log_p: jax.Array, active: jax.Array, lightest: float, name: str) -> None:
    """Tokens in play that their law can have produced; values can be looked at only where they are not traced."""
    if any(isinstance(x, jax.core.Tracer) for x in (value, log_p, active)):
        return
    found, laws = np.asarray(value), np.asarray(log_p)
    chances = laws[found] if laws.ndim == 1 else laws[np.arange(found.shape[0]), found]
    impossible = np.asarray(active) & ~(chances >= lightest)
    if impossible.any():
        token = found[impossible.argmax()]
        raise ValueError(f"{name}: expected tokens of positive probability under log_p, got {token}, which has none")


def alive_tokens(value: jax.Array, alive: jax.Array, num_items: int, name: str) -> None:
    """:func:`tokens` of the nodes that are used."""
    if not any(isinstance(x, jax.core.Tracer) for x in (value, alive)):
        tokens(np.asarray(value)[np.asarray(alive)], num_items, name)


def one_law_each(log_p: jax.Array, parents: jax.Array, alive: jax.Array, owner: str) -> None:
    """Siblings drawn from one law; values can be looked at only where they are not traced."""
    if any(isinstance(x, jax.core.Tracer) for x in (log_p, parents, alive)):
        return
    laws, context = np.exp(np.asarray(log_p)), np.asarray(parents).tolist()
    first: dict[int, int] = {}
    for node in np.flatnonzero(np.asarray(alive)).tolist():
        one = first.setdefault(context[node], node)
        if not np.allclose(laws[node], laws[one], rtol=0, atol=1e-4):
            raise ValueError(
                f"log_p: {owner} draws siblings from one law, got another one for node {node} than for {one}"
            )
