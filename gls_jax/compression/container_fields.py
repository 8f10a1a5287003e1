"""`Container`: the content of a blob as a record, and the checks of its fields."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gls_jax.compression import payload as payloads
from gls_jax.compression.list_code import MAX_SIZE, SCHEMES, SEARCHES, ListCode

__all__ = [
    "HEADER_FIELDS",
    "Container",
    "check_fields",
    "check_header",
    "check_int",
    "check_payload_messages",
    "header",
    "shown",
]

_KINDS = ("gaussian", "images")
_PRNGS = ("threefry2x32",)

_CHOICES = {"kind": _KINDS, "prng": _PRNGS, "scheme": SCHEMES, "search": SEARCHES}


@dataclasses.dataclass(frozen=True, eq=False)
class Container:
    """Everything that a decoder must know, and the messages. Fields are checked by `pack` only.

    ``==`` compares identity; two containers with equal content have equal bytes.

    Attributes:
        kind: of the codec, `gaussian` or `images`.
        prng: generator of the shared noise, `threefry2x32`.
        seed: of the shared noise, within 0..2^32-1.
        num_candidates: `N`, within 1..2^30.
        num_bins: `L`, within 1..N; below 2^24 unless it is a power of two.
        num_decoders: `K`, within 1..2^30.
        scheme: one of `SCHEMES`.
        search: one of `SEARCHES`.
        block: number of candidates or symbols that are processed together, within 1..2^30.
        parameters: of the codec, by name: strings, 64-bit integers and finite floats. `unpack`
            returns exactly these values.
        messages: `i32[n]` within 0..L-1, at most 2^30; read-only after `unpack`.
    """

    kind: str
    prng: str
    seed: int
    num_candidates: int
    num_bins: int
    num_decoders: int
    scheme: str
    search: str
    block: int
    parameters: Mapping[str, str | int | float]
    messages: np.ndarray


HEADER_FIELDS = frozenset(field.name for field in dataclasses.fields(Container)) - {"messages"}


def header(
    kind: str, code: ListCode, block: int, parameters: Mapping[str, str | int | float]
) -> dict[str, Any]:
    """All fields of a codec's containers except seed and messages."""
    return {
        "kind": kind,
        "prng": _PRNGS[0],
        "num_candidates": code.num_candidates,
        "num_bins": code.num_bins,
        "num_decoders": code.num_decoders,
        "scheme": code.scheme,
        "search": code.search,
        "block": block,
        "parameters": parameters,
    }


def check_header(container: Container, expected: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless the codec with this :func:`header` made the container."""
    for name, value in expected.items():
        got = getattr(container, name)
        if got != value:
            raise ValueError(
                f"blob: expected one of an equal codec, with {name} {value}, got {got}"
            )


def check_fields(container: Container) -> None:
    """Raise `ValueError` for the first field out of range; messages are not looked at."""
    for name, choices in _CHOICES.items():
        value = getattr(container, name)
        if not isinstance(value, str) or value not in choices:
            expected = " or ".join(map(repr, choices))
            raise ValueError(f"{name}: expected {expected}, got {shown(value)}")
    # A key is made of 32 bits of seed.
    check_int(container.seed, "seed", 0, 2**32 - 1)
    for name in ("num_candidates", "num_decoders", "block"):
        check_int(getattr(container, name), name, 1, MAX_SIZE)
    check_int(container.num_bins, "num_bins", 1, container.num_candidates)
    payloads.check_num_bins(container.num_bins)
    if not isinstance(container.parameters, Mapping):
        raise ValueError(f"parameters: expected a mapping, got {shown(container.parameters)}")
    for name, value in container.parameters.items():
        _check_parameter(name, value)


def check_payload_messages(messages: Any, num_bins: int) -> None:
    """Raise `ValueError` unless messages are `i32[n]` within 0..L-1."""
    if not isinstance(messages, np.ndarray):
        raise ValueError(f"messages: expected a NumPy array, got {type(messages).__name__}")
    if messages.dtype != np.int32 or messages.ndim != 1:
        got = f"{messages.dtype} of shape {list(messages.shape)}"
        raise ValueError(f"messages: expected int32 of shape [n], got {got}")
    # 2^30 messages of 30 bits: the length of the payload fits its u32.
    check_int(messages.size, "messages: their count", 0, MAX_SIZE)
    if messages.size and not 0 <= messages.min() <= messages.max() < num_bins:
        raise ValueError(
            f"messages: expected all within 0..{num_bins - 1}, "
            f"got {messages.min()} to {messages.max()}"
        )


def check_int(value: Any, name: str, first: int, last: int) -> None:
    """Raise `ValueError` unless `value` is a Python int within `first..last`."""
    if not _is_int(value) or not first <= value <= last:
        raise ValueError(f"{name}: expected one int within {first}..{last}, got {shown(value)}")


def shown(value: Any) -> str:
    """The start and the end of a value, on one line, for error messages."""
    # repr of an array has several lines, and a forged field may be very long.
    return " ".join(reprlib.repr(value).split())


def _check_parameter(name: Any, value: Any) -> None:
    if not isinstance(name, str):
        raise ValueError(f"parameters: expected names that are strings, got {shown(name)}")
    if isinstance(value, float):
        # JSON has neither NaN nor infinity.
        is_valid = math.isfinite(value)
    elif _is_int(value):
        # Readers in other languages may have no larger integers.
        is_valid = -(2**63) <= value < 2**63
    else:
        is_valid = isinstance(value, str)
    if not is_valid:
        raise ValueError(
            f"parameters[{shown(name)}]: expected a string, a 64-bit int or a finite float, "
            f"got {shown(value)}"
        )


def _is_int(value: Any) -> bool:
    # JSON's true and false are bool, which is a subclass of int.
    return isinstance(value, int) and not isinstance(value, bool)
