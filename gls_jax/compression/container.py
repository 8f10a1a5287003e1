"""Container: the bytes a lossy codec writes, everything that a decoder must know and the messages.

One layout, integers little-endian::

    b"GLSC" | version u8 | header length u16 | payload length u32 | header | payload | checksum, 8 bytes

The header is JSON: the fields of :class:`Container` except the messages, and their count. The
payload is that of :mod:`gls_jax.compression.payload`. The checksum is BLAKE2b of all bytes before
it. A container has exactly one blob: what :func:`pack` would not have written, :func:`unpack`
refuses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import reprlib
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gls_jax.compression import payload as payloads
from gls_jax.compression.code import SCHEMES, SEARCHES, ListCode

__all__ = [
    "KINDS",
    "PRNGS",
    "VERSION",
    "Container",
    "Sizes",
    "check_header",
    "header",
    "pack",
    "sizes",
    "unpack",
]

KINDS = ("gaussian", "images")
PRNGS = ("threefry2x32",)
VERSION = 1

_MAGIC = b"GLSC"
_PREFIX = struct.Struct(f"<{len(_MAGIC)}sBHI")
_CHECKSUM_BYTES = 8
_LARGEST = 2**30  # of sizes and of the count; with it, the payload's length fits its u32
_LARGEST_HEADER = 2**16 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Container:
    """Everything that a decoder must know, and the messages. Nothing is checked before `pack`.

    Two are the same where `pack` makes the same bytes: ``==`` asks for the same object.

    Attributes:
        kind: of the codec, one of `KINDS`.
        prng: generator behind the shared noise, one of `PRNGS`.
        seed: of the shared noise, within 0..2^32-1.
        num_candidates: `N`, within 1..2^30.
        num_bins: `L`, within 1..N; where it is no power of two, below 2^24.
        num_decoders: `K`, within 1..2^30.
        scheme: one of `SCHEMES`.
        search: one of `SEARCHES`.
        block: how many candidates or symbols are worked on together, within 1..2^30.
        parameters: of the codec, by name: strings, 64-bit integers and finite floats, which return
            as they were.
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


def header(
    kind: str, code: ListCode, block: int, parameters: Mapping[str, str | int | float]
) -> dict[str, Any]:
    """All fields of a codec's containers but seed and messages."""
    return {
        "kind": kind,
        "prng": PRNGS[0],
        "num_candidates": code.num_candidates,
        "num_bins": code.num_bins,
        "num_decoders": code.num_decoders,
        "scheme": code.scheme,
        "search": code.search,
        "block": block,
        "parameters": parameters,
    }


def check_header(found: Container, expected: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a container of another codec than the one with this :func:`header`."""
    for name, value in expected.items():
        if (got := getattr(found, name)) != value:
            raise ValueError(
                f"blob: expected one of an equal codec, with {name} {value}, got {got}"
            )


_FIELDS = frozenset(field.name for field in dataclasses.fields(Container)) - {"messages"}


class Sizes(NamedTuple):
    """Bits of a blob, as they lie on disk.

    Attributes:
        header_bits: everything but the payload: prefix, header and checksum.
        payload_bits: the messages, in whole bytes.
        count: number of messages.
    """

    header_bits: int
    payload_bits: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody wants of sizes

    @property
    def rate(self) -> float:
        """Payload bits a message; 0 where there is none."""
        return self.payload_bits / self.count if self.count else 0.0


def pack(container: Container) -> bytes:
    """The blob of a container.

    Args:
        container: what to write.

    Returns:
        The bytes, the same for the same container.

    Raises:
        ValueError: a field or a message out of range, and which range it has.

    >>> import numpy as np
    >>> from gls_jax.compression import container
    >>> blob = container.pack(
    ...     container.Container(
    ...         "gaussian",
    ...         "threefry2x32",
    ...         seed=0,
    ...         num_candidates=1024,
    ...         num_bins=8,
    ...         num_decoders=2,
    ...         scheme="gls",
    ...         search="dense",
    ...         block=256,
    ...         parameters={"side_variance": 0.5},
    ...         messages=np.arange(8, dtype=np.int32),
    ...     )
    ... )
    >>> container.unpack(blob).messages
    array([0, 1, 2, 3, 4, 5, 6, 7], dtype=int32)
    >>> container.sizes(blob).rate
    3.0
    """
    if not isinstance(container, Container):
        raise ValueError(f"container: expected a Container, got {type(container).__name__}")
    _check_fields(container)
    _check_messages(container.messages, container.num_bins)
    fields = {name: getattr(container, name) for name in _FIELDS}
    fields |= {"parameters": dict(container.parameters), "count": container.messages.size}
    header = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")
    if len(header) > _LARGEST_HEADER:
        raise ValueError(
            f"header: expected at most {_LARGEST_HEADER} bytes, got {len(header)}: shorten the parameters"
        )
    payload = payloads.encode(container.messages, container.num_bins)
    body = b"".join((_PREFIX.pack(_MAGIC, VERSION, len(header), len(payload)), header, payload))
    return body + _checksum(body)


def unpack(blob: bytes | bytearray | memoryview) -> Container:
    """The container of a blob.

    Args:
        blob: what `pack` returned.

    Returns:
        The container that was packed, parameters and messages exactly.

    Raises:
        ValueError: anything that `pack` does not write: other data, another version, bytes cut,
            added or changed, or a header that was made by hand and is out of range or does not fit
            the payload.
    """
    blob = _bytes(blob)
    header, payload = _split(blob)
    fields, count = _read_header(header)
    container = Container(**fields, messages=np.zeros(0, np.int32))
    _check_fields(container)
    container = dataclasses.replace(
        container, messages=payloads.decode(payload, container.num_bins, count)
    )
    if pack(container) != blob:
        raise ValueError("blob: its contents can be read, but pack writes them as other bytes")
    return container


def sizes(blob: bytes | bytearray | memoryview) -> Sizes:
    """Header and payload of a blob in bits, and the number of messages.

    Raises:
        ValueError: as `unpack` does.
    """
    blob = _bytes(blob)
    payload_bytes = len(_split(blob)[1])
    return Sizes(8 * (len(blob) - payload_bytes), 8 * payload_bytes, unpack(blob).messages.size)


def _bytes(blob) -> bytes:
    if not isinstance(blob, bytes | bytearray | memoryview):
        raise ValueError(
            f"blob: expected bytes, bytearray or memoryview, got {type(blob).__name__}"
        )
    return bytes(blob)


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).digest()


def _split(blob: bytes) -> tuple[bytes, bytes]:
    """Header and payload of a blob that is whole."""
    if not blob.startswith(_MAGIC):
        raise ValueError(
            f"not a gls_jax blob: expected {_MAGIC!r} at its start, got {blob[: len(_MAGIC)]!r}"
        )
    if len(blob) > len(_MAGIC) and blob[len(_MAGIC)] != VERSION:
        raise ValueError(f"unknown version {blob[len(_MAGIC)]}, expected {VERSION}")
    if len(blob) < _PREFIX.size:
        raise ValueError(
            f"truncated: expected at least {_PREFIX.size + _CHECKSUM_BYTES} bytes, got {len(blob)}"
        )
    _, _, header_bytes, payload_bytes = _PREFIX.unpack_from(blob)
    middle = _PREFIX.size + header_bytes
    end = middle + payload_bytes
    if len(blob) < end + _CHECKSUM_BYTES:
        raise ValueError(f"truncated: expected {end + _CHECKSUM_BYTES} bytes, got {len(blob)}")
    if len(blob) > end + _CHECKSUM_BYTES:
        raise ValueError(f"bytes after the end: expected {end + _CHECKSUM_BYTES}, got {len(blob)}")
    if _checksum(blob[:end]) != blob[end:]:
        raise ValueError("checksum does not match: some of the bytes were changed")
    return blob[_PREFIX.size : middle], blob[middle:end]


def _read_header(header: bytes) -> tuple[dict[str, Any], int]:
    """Fields by name, not yet checked, and the number of messages."""
    try:
        fields = json.loads(header.decode("ascii"))
    except (ValueError, RecursionError):  # a few kilobytes of brackets exhaust the parser's stack
        raise ValueError(f"header: expected JSON, got {_shown(header)}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"header: expected a JSON object, got {_shown(fields)}")
    expected = _FIELDS | {"count"}
    if fields.keys() != expected:
        missing, unknown = sorted(expected - fields.keys()), sorted(fields.keys() - expected)
        raise ValueError(
            f"header: expected other fields: missing {missing}, unknown {_shown(unknown)}"
        )
    count = fields.pop("count")
    _check_int(count, "count", 0, _LARGEST)
    return fields, count


def _check_fields(container: Container) -> None:
    for name, names in (
        ("kind", KINDS),
        ("prng", PRNGS),
        ("scheme", SCHEMES),
        ("search", SEARCHES),
    ):
        value = getattr(container, name)
        if not isinstance(value, str) or value not in names:
            raise ValueError(
                f"{name}: expected {' or '.join(map(repr, names))}, got {_shown(value)}"
            )
    _check_int(container.seed, "seed", 0, 2**32 - 1)
    for name in ("num_candidates", "num_decoders", "block"):
        _check_int(getattr(container, name), name, 1, _LARGEST)
    _check_int(container.num_bins, "num_bins", 1, container.num_candidates)
    payloads.check_num_bins(container.num_bins)
    if not isinstance(container.parameters, Mapping):
        raise ValueError(f"parameters: expected a mapping, got {_shown(container.parameters)}")
    for name, value in container.parameters.items():
        if not isinstance(name, str):
            raise ValueError(f"parameters: expected names that are strings, got {_shown(name)}")
        if isinstance(value, float):
            good = math.isfinite(value)
        else:
            good = isinstance(value, str) or (_is_int(value) and -(2**63) <= value < 2**63)
        if not good:
            where = f"parameters[{_shown(name)}]"
            raise ValueError(
                f"{where}: expected a string, a 64-bit int or a finite float, got {_shown(value)}"
            )


def _check_messages(messages, num_bins: int) -> None:
    if not isinstance(messages, np.ndarray):
        raise ValueError(f"messages: expected a NumPy array, got {type(messages).__name__}")
    if messages.dtype != np.int32 or messages.ndim != 1:
        got = f"{messages.dtype} of shape {list(messages.shape)}"
        raise ValueError(f"messages: expected int32 of shape [n], got {got}")
    _check_int(messages.size, "messages: their count", 0, _LARGEST)
    if messages.size and not 0 <= messages.min() <= messages.max() < num_bins:
        raise ValueError(
            f"messages: expected all within 0..{num_bins - 1}, got {messages.min()} to {messages.max()}"
        )


def _check_int(value, name: str, first: int, last: int) -> None:
    if not _is_int(value) or not first <= value <= last:
        raise ValueError(f"{name}: expected one int within {first}..{last}, got {_shown(value)}")


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value) -> str:
    """The start and the end of a value, on one line."""
    return " ".join(reprlib.repr(value).split())
