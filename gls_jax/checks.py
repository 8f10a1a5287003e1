"""Input checks of the public functions: one line that names what was got and what was expected.

Shapes, types and static sizes are always checked, under `jit` while it traces, and raise
``ValueError``. Values of arrays are checked where they are known, once per public call, see
:func:`check_log_probs`. What the library computes itself, residuals or weights of a race, goes to
the functions behind the public ones, and no check sees it.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.typing import ArrayLike

from gls_jax.typing import Index

__all__ = ["check_log_probs"]

_KEY_IMPL = "threefry2x32"
_NUMBERS_PER_STEP = 2**20  # log-probabilities that the check exponentiates at a time


def check_log_probs(log_probs: ArrayLike, name: str = "log_probs", *, atol: float = 1e-3) -> None:
    """Check that `log_probs` holds log-probabilities: no NaN, nothing above 0, sum 1 on the last
    axis.

    Every public function that takes log-probabilities makes this check itself wherever their values
    are known. They are not known under `jit`, `vmap` over them, or `grad`: there nothing is
    checked, unless you call this function inside. It is then a `checkify.check`: wrap the
    transformed function with `jax.experimental.checkify.checkify`, and call `error.throw()`.

    Args:
        log_probs: `f[..., N]`, `-inf` where the probability is zero.
        name: how the error calls the array.
        atol: allowed error of the sum, a probability. The default lets pass what float32 makes of
            200,000 categories. What the array's own float type rounds away is allowed on top: `eps
            (1 + entropy)`, some percent in bfloat16.

    Raises:
        ValueError: what is wrong, in which row, what the values look like, and what to do.

    >>> import jax, jax.numpy as jnp, gls_jax
    >>> from jax.experimental import checkify
    >>> gls_jax.check_log_probs(jnp.log(jnp.array([0.25, 0.75])))
    >>> gls_jax.check_log_probs(jnp.array([0.25, 0.75]), "log_q")
    Traceback (most recent call last):
    ...
    ValueError: log_q: expected log-probabilities of at most 0, got 0.75; these look like probabilities: take jnp.log
    >>> def match(log_p, log_q):
    ...     gls_jax.check_log_probs(log_p, "log_p")
    ...     return gls_jax.bounds.list_matching(log_p, log_q, 4)
    >>> error, _ = checkify.checkify(jax.jit(match))(
    ...     jnp.array([0.25, 0.75]), jnp.log(jnp.array([0.5, 0.5]))
    ... )
    >>> error.get().splitlines()[0]
    'log_p: expected log-probabilities of at most 0, got a positive one (`check` failed)'
    """
    array = floats(log_probs, name, integers=False)
    if array.ndim < 1 or array.shape[-1] < 1:
        raise ValueError(f"{name}: expected shape [..., N] with N >= 1, got {list(array.shape)}")
    if not isinstance(log_probs, jax.core.Tracer):
        values(log_probs, name, atol=atol)
        return
    eps = float(jnp.finfo(log_probs.dtype).eps)
    probs = jnp.exp(array)
    entropy = -jnp.sum(probs * jnp.where(probs > 0, array, 0), axis=-1)
    checkify.check(~jnp.isnan(array).any(), f"{name}: expected log-probabilities, got NaN")
    checkify.check(
        (array <= atol + eps).all(),
        f"{name}: expected log-probabilities of at most 0, got a positive one",
    )
    checkify.check(
        (jnp.abs(jnp.sum(probs, axis=-1) - 1) <= atol + eps * (1 + entropy)).all(),
        f"{name}: expected probabilities that sum to 1 (within {atol:g})",
    )


def values(log_probs: Any, name: str, *, atol: float = 1e-3) -> None:
    """Refuse rows `[..., N]` that are not log-probabilities, where their values are known.

    Takes what the caller was given, before any `jnp` operation: inside `jit` these trace even
        constants.
    """
    known = _known(log_probs)
    if known is None:
        return
    eps = float(
        jnp.finfo(known.dtype).eps
    )  # before bfloat16 becomes float32, which NumPy is fast at
    num_categories = known.shape[-1]
    rows = known.reshape(-1, num_categories)
    per_step = max(1, _NUMBERS_PER_STEP // num_categories)
    for start in range(0, len(rows), per_step):
        some = rows[start : start + per_step]
        some = some.astype(np.promote_types(some.dtype, np.float32), copy=False)
        with np.errstate(over="ignore"):
            totals = np.exp(some).sum(-1, dtype=np.float64)
        # A row with NaN, or with a value above 0, has no such sum either.
        for suspect in np.flatnonzero(~(np.abs(totals - 1) <= atol)):
            if fault := _fault(some[suspect].astype(np.float64), atol, eps):
                place = np.unravel_index(start + int(suspect), known.shape[:-1])
                where = f"[{', '.join(str(int(i)) for i in place)}]" if place else ""
                raise ValueError(f"{name}{where}: {fault}")


def _known(value) -> np.ndarray | None:
    """The values of an array, on the host; None where they are traced or on devices of other
    processes.
    """
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array) and not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        return None
    with jax.transfer_guard_device_to_host("allow"):  # as jax.device_get, at a quarter of its time
        return np.asarray(value)


def _fault(row: np.ndarray, atol: float, eps: float) -> str | None:
    """What is wrong with one row, and what to do; None if rounding to a type of that `eps` explains
    its sum.
    """
    if np.isnan(row).any():
        return "expected log-probabilities, got NaN"
    if (highest := row.max()) > atol + eps:
        fault = f"expected log-probabilities of at most 0, got {highest:.6g}"
        if np.isinf(highest):
            return fault
        if row.min() >= 0 and abs(row.sum() - 1) <= 0.02:
            return f"{fault}; these look like probabilities: take jnp.log"
        return f"{fault}; these look like logits: take jax.nn.log_softmax"
    probs = np.exp(row)
    total = probs.sum()
    # Rounding moves log-probability x by up to eps |x| / 2: once when it is stored, and once more,
    # with its maximum and its logsumexp, where log_softmax itself computes in that type, which also
    # rounds the terms of the logsumexp.
    entropy = -np.sum(probs * np.maximum(row, -1e4))
    if abs(total - 1) <= (tolerance := atol + eps * (1 + entropy)):
        return None
    fault = (
        f"expected probabilities that sum to 1 (within {tolerance:.2g}), got a sum of {total:.6g}"
    )
    if np.isinf(highest):
        return f"{fault}: every value is -inf"
    return (
        f"{fault}; logits, or a masked distribution? renormalise with jax.nn.log_softmax, "
        f"which is log_p - logsumexp(log_p)"
    )


def logits(value: ArrayLike, name: str) -> jax.Array:
    """Logits `[..., N]` in their own float type; where their values are known, none that have no
    softmax.
    """
    given = _array(value, name, "logits, an array of floats")
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise ValueError(f"{name}: expected logits, an array of floats, got dtype {given.dtype}")
    array = _on_device(given)
    known = _known(given)
    if array.ndim < 1 or array.shape[-1] < 1:
        raise ValueError(f"{name}: expected shape [..., N] with N >= 1, got {list(array.shape)}")
    if known is None or not known.size:
        return array
    with np.errstate(over="ignore"):  # what leaves the float type becomes inf
        rows = known.reshape(-1, known.shape[-1]).astype(
            jnp.promote_types(array.dtype, jnp.float32), copy=False
        )
    if not (rows < np.inf).all():
        raise ValueError(f"{name}: expected logits, -inf where a token is masked, got NaN or inf")
    if not (rows > -np.inf).any(-1).all():
        raise ValueError(
            f"{name}: expected at least one finite logit per position, got nothing but -inf"
        )
    if rows.shape[-1] > 1 and (rows >= 0).all() and (abs(rows.sum(-1) - 1) < 1e-3).all():
        raise ValueError(
            f"{name}: expected logits, got what looks like probabilities: take jnp.log"
        )
    return array


def count(value: Any, name: str) -> int:
    """A positive Python int; sizes shape arrays, so they cannot be traced."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        got = "a traced value" if isinstance(value, jax.core.Tracer) else repr(value)
        raise ValueError(
            f"{name}: expected an int of at least 1 known before tracing, got {got}"
        ) from None
    if number < 1:
        raise ValueError(f"{name}: expected an int of at least 1, got {number}")
    return number


def index(value: Any, name: str, last: int = 2**32 - 2) -> Index:
    """One index of at least 0, an int or a traced integer. No float: cut to an int, it would reuse
    random numbers.
    """
    if isinstance(value, jax.core.Tracer):
        good = value.shape == () and jnp.issubdtype(value.dtype, jnp.integer)
        got = f"{value.dtype} of shape {list(value.shape)}"
    else:
        try:
            good, got = (
                not isinstance(value, bool) and 0 <= operator.index(value) <= last,
                repr(value),
            )
        except TypeError:
            good, got = (
                False,
                type(value).__name__ if np.ndim(value) or value is None else repr(value),
            )
    if not good:
        raise ValueError(f"{name}: expected one int within 0..{last}, got {got}")
    return value


def active_of(num_active: Any, num_drafts: Any) -> tuple[int, int]:
    """How many of the drafts are still in play."""
    num_drafts, num_active = count(num_drafts, "num_drafts"), count(num_active, "num_active")
    if num_active > num_drafts:
        raise ValueError(
            f"num_active: expected at most num_drafts ({num_drafts}), got {num_active}"
        )
    return num_active, num_drafts


def one_of(value: Any, names: tuple[str, ...], name: str) -> str:
    """One of some words."""
    if value not in names:
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}")
    return value


def local_devices(values: Any) -> list[jax.Device]:
    """Devices of this process, at least one, each once."""
    try:
        devices = list(values)
    except TypeError:
        raise ValueError(f"devices: expected a sequence of devices, got {values!r}") from None
    known = [
        isinstance(device, jax.Device) and device.process_index == jax.process_index()
        for device in devices
    ]
    if not devices or not all(known) or len(set(devices)) < len(devices):
        raise ValueError(f"devices: expected some of this process, each once, got {devices}")
    return devices


def key(value: Any) -> None:
    """One typed threefry key: another generator would give other clocks to the other party."""
    keys(value)
    if value.shape != ():
        raise ValueError(
            f"key: expected one key of shape [], got shape {list(value.shape)}; lift with jax.vmap"
        )


def keys(value: Any) -> None:
    """Typed threefry keys of any shape."""
    if not (isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)):
        got = f"{type(value).__name__}" + (
            f" of dtype {value.dtype}" if hasattr(value, "dtype") else ""
        )
        if getattr(value, "dtype", None) == np.uint32:  # what jax.random.PRNGKey makes
            got += f'; an old key becomes one by jax.random.wrap_key_data(key, impl="{_KEY_IMPL}")'
        raise ValueError(f"key: expected a typed key from jax.random.key(seed), got {got}")
    if (impl := str(jax.random.key_impl(value))) != _KEY_IMPL:
        raise ValueError(
            f'key: expected impl {_KEY_IMPL!r}, got {impl!r}; make it by jax.random.key(seed, impl="{_KEY_IMPL}")'
        )


def floats(value: Any, name: str, *, integers: bool = True) -> jax.Array:
    """A float array of at least 32 bits: races and laws are never computed in less."""
    array = _on_device(_array(value, name, "an array of floats"))
    is_integer = jnp.issubdtype(array.dtype, jnp.integer)
    if not (is_integer or jnp.issubdtype(array.dtype, jnp.floating)):
        raise ValueError(f"{name}: expected an array of floats, got dtype {array.dtype}")
    if is_integer and not integers:
        raise ValueError(
            f"{name}: expected an array of floats, got dtype {array.dtype}; of probabilities take jnp.log"
        )
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def integers(value: Any, name: str, shape: str) -> jax.Array:
    """An array of integers of some shape, such as `[K, L]`, as `i32`."""
    array = _array(value, name, f"integers of shape {shape}")
    if array.ndim != len(shape.split(",")) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name}: expected integers of shape {shape}, got {array.dtype} of shape {list(array.shape)}"
        )
    found, limits = _known(array), np.iinfo(np.int32)
    if found is not None and found.size:
        for extreme in (int(found.min()), int(found.max())):
            if not limits.min <= extreme <= limits.max:  # it would wrap around to another number
                raise ValueError(f"{name}: expected integers of 32 bits, got {extreme}")
    return _on_device(array).astype(jnp.int32)


def flags(value: Any, name: str, size: int) -> jax.Array:
    """`bool[size]`."""
    array = _array(value, name, f"bool of shape [{size}]")
    if array.shape != (size,) or array.dtype != jnp.bool_:
        raise ValueError(
            f"{name}: expected bool of shape [{size}], got {array.dtype} of shape {list(array.shape)}"
        )
    return _on_device(array)


def _array(value: Any, name: str, expected: str) -> jax.Array | np.ndarray:
    """What a user calls an array, in a type that JAX knows; nothing is narrowed yet."""
    if isinstance(value, jax.Array):
        return value
    if np.ma.is_masked(value):
        raise ValueError(
            f"{name}: expected {expected}, got a masked array; fill it by its method `filled`"
        )
    try:
        array = np.asarray(value)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        known = jnp.issubdtype(array.dtype, np.number) or array.dtype == bool
    except (TypeError, ValueError):
        known = False
    if known and array.dtype not in (np.longdouble, np.clongdouble):
        return array
    got = f"dtype {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
    rows = " whose rows make no array of numbers" if isinstance(value, (list, tuple)) else ""
    raise ValueError(f"{name}: expected {expected}, got {got}{rows}")


def _on_device(array: jax.Array | np.ndarray) -> jax.Array:
    """In the nearest type that JAX has."""
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf
        return jnp.asarray(array)


def law(value: Any, name: str) -> jax.Array:
    """One law, `f[N]`; its values are not looked at."""
    array = floats(value, name, integers=False)
    if array.ndim == 1 and array.shape[0] >= 1:
        return array
    batch = "; lift a batch of problems with jax.vmap" if array.ndim > 1 else ""
    raise ValueError(f"{name}: expected shape [N] with N >= 1, got {list(array.shape)}{batch}")


def problem(log_p: Any, log_q: Any) -> tuple[jax.Array, jax.Array]:
    """The log-probabilities of one problem, `f[N]` each, in their common float type."""
    both = same_items(law(log_p, "log_p"), law(log_q, "log_q"))
    values(log_p, "log_p")
    values(log_q, "log_q")
    return both


def list_problem(
    log_p: Any, log_q: Any, num_drafts: int, *, diverse: bool = True, owner: str = ""
) -> tuple[jax.Array, jax.Array]:
    """:func:`problem` of a list: where `diverse` allows it, `log_p` may be `f[K, N]`."""
    both = same_items(
        draft_laws(log_p, num_drafts, diverse=diverse, owner=owner), law(log_q, "log_q")
    )
    values(log_p, "log_p")
    values(log_q, "log_q")
    return both


def draft_laws(value: Any, num_drafts: int, *, diverse: bool = True, owner: str = "") -> jax.Array:
    """The drafter's law `f[N]`, or where `diverse` allows it one law a draft, `f[K, N]`; values are
    not looked at.
    """
    array = floats(value, "log_p", integers=False)
    got = f"got shape {list(array.shape)}"
    if array.ndim == 2 and not diverse:
        raise ValueError(
            f"log_p: {owner} draws its list from one law, expected shape [N], {got}; "
            f"lift a batch of problems with jax.vmap"
        )
    if array.ndim not in (1, 2) or array.shape[-1] < 1:
        batch = "; lift a batch of problems with jax.vmap" if array.ndim > 1 else ""
        raise ValueError(f"log_p: expected shape [N] or [K, N] with N >= 1, {got}{batch}")
    if array.ndim == 2 and array.shape[0] != num_drafts:
        raise ValueError(
            f"log_p: expected {num_drafts} rows (num_drafts), {got}; "
            f"one law for all drafts is [N], and a batch of problems is lifted with jax.vmap"
        )
    return array


def laws(value: Any, count: int, name: str) -> jax.Array:
    """`count` laws, `f[count, N]`; values are not looked at."""
    array = floats(value, name, integers=False)
    if array.ndim != 2 or array.shape[0] != count or array.shape[1] < 1:
        batch = "; lift a batch of problems with jax.vmap" if array.ndim > 2 else ""
        raise ValueError(
            f"{name}: expected shape [{count}, N] with N >= 1, got {list(array.shape)}{batch}"
        )
    return array


def within_unit(value: Any, name: str, *, atol: float = 1e-3) -> None:
    """Refuse values outside [0, 1], where values are known."""
    known = _known(value)
    if known is None:
        return
    outside = ~((known >= -atol) & (known <= 1 + atol))  # NaN too
    if outside.any():
        hint = "; these look like log-probabilities: take jnp.exp" if (known <= 0).all() else ""
        raise ValueError(f"{name}: expected probabilities, got {known[outside][0]:.6g}{hint}")


def distributions(value: Any, name: str) -> np.ndarray:
    """Probabilities `f64[..., N]` as a NumPy array, for functions that run on the host; each row
    must sum to 1.
    """
    kind = floats(value, name).dtype if not hasattr(value, "dtype") else value.dtype
    atol = 1e-3 + float(jnp.finfo(jnp.promote_types(kind, jnp.bfloat16)).eps)
    rows = np.asarray(value, np.float64)
    within_unit(rows, name, atol=atol)
    totals = rows.sum(-1)
    if (wrong := np.abs(totals - 1) > atol).any():
        raise ValueError(
            f"{name}: expected probabilities that sum to 1 (within {atol:.2g}), got a sum of {totals[wrong][0]:.6g}"
        )
    return rows


def same_items(log_p: jax.Array, log_q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both laws over one set of items, in their common float type."""
    if log_p.shape[-1] != log_q.shape[-1]:
        raise ValueError(
            f"log_p and log_q: expected the same number of items, got {log_p.shape[-1]} and {log_q.shape[-1]}"
        )
    dtype = jnp.promote_types(log_p.dtype, log_q.dtype)
    return log_p.astype(dtype), log_q.astype(dtype)


def counts(values: Any, name: str) -> tuple[int, ...]:
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
        raise ValueError(
            f"{name}: expected tokens within 0..{num_items - 1}, got {found.min()} to {found.max()}"
        )


def possible_tokens(
    value: jax.Array, log_p: jax.Array, active: jax.Array, lightest: float, name: str
) -> None:
    """Tokens in play that their law can have produced; values can be looked at only where they are
    not traced.
    """
    if any(isinstance(x, jax.core.Tracer) for x in (value, log_p, active)):
        return
    found, laws = np.asarray(value), np.asarray(log_p)
    chances = laws[found] if laws.ndim == 1 else laws[np.arange(found.shape[0]), found]
    impossible = np.asarray(active) & ~(chances >= lightest)
    if impossible.any():
        token = found[impossible.argmax()]
        raise ValueError(
            f"{name}: expected tokens of positive probability under log_p (at least e^{lightest:g}), "
            f"got {token}, which has less"
        )


def alive_tokens(value: jax.Array, alive: jax.Array, num_items: int, name: str) -> None:
    """:func:`tokens` of the nodes that are alive."""
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
                f"log_p: {owner} draws all siblings from one law, got different ones for nodes {one} and {node}"
            )


def alive_rows(log_probs: Any, alive: jax.Array, name: str, *, root: bool = False) -> None:
    """:func:`values` of the nodes that are alive; with `root`, row 0 belongs to the root and is
    checked as well.
    """
    known = _known(log_probs)
    if known is not None and (used := _known(alive)) is not None:
        values(known[np.append(True, used) if root else used], name)
