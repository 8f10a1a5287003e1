"""The bytes that a codec writes: a header with everything a decoder must know, and the messages.

The layout, with little-endian integers::

    b"GLSC" | version u8 | header length u16 | payload length u32 |
    header | payload | checksum, 8 bytes

The header is JSON: the fields of :class:`Container` except the messages, and their count.
:mod:`gls_jax.compression.payload` describes the payload. The checksum is BLAKE2b of all bytes
before it. A container has exactly one blob: :func:`unpack` refuses bytes that :func:`pack` would
not have written.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any, NamedTuple

import numpy as np

from gls_jax.compression import payload as payloads
from gls_jax.compression.container_fields import (
    HEADER_FIELDS,
    Container,
    check_fields,
    check_int,
    check_payload_messages,
    shown,
)
from gls_jax.compression.list_code import MAX_SIZE

__all__ = ["VERSION", "Container", "Sizes", "pack", "sizes", "unpack"]

VERSION = 1

_MAGIC = b"GLSC"
_PREFIX = struct.Struct(f"<{len(_MAGIC)}sBHI")
_CHECKSUM_BYTES = 8
_MAX_HEADER_BYTES = 2**16 - 1


class Sizes(NamedTuple):
    """Sizes of a blob in bits, as stored.

    Attributes:
        header_bits: everything but the payload: prefix, header and checksum.
        payload_bits: the messages, in whole bytes.
        count: number of messages.
    """

    header_bits: int
    payload_bits: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which is of no use here

    @property
    def rate(self) -> float:
        """Payload bits per message; 0 if there are none."""
        return self.payload_bits / self.count if self.count else 0.0


def pack(container: Container) -> bytes:
    """The blob of a container.

    Args:
        container: what to write.

    Returns:
        The bytes, the same for equal containers.

    Raises:
        ValueError: a field or a message out of range; the message says which range it has.

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
    check_fields(container)
    check_payload_messages(container.messages, container.num_bins)
    # The count cannot be computed from a payload that is range coded, or of one bin only.
    fields = {name: getattr(container, name) for name in HEADER_FIELDS}
    fields |= {"parameters": dict(container.parameters), "count": container.messages.size}
    # Sorted keys, fixed separators and ASCII: a container has one blob only.
    header = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")
    if len(header) > _MAX_HEADER_BYTES:
        raise ValueError(
            f"header: expected at most {_MAX_HEADER_BYTES} bytes, got {len(header)}: "
            "shorten the parameters"
        )
    payload = payloads.encode(container.messages, container.num_bins)
    prefix = _PREFIX.pack(_MAGIC, VERSION, len(header), len(payload))
    body = prefix + header + payload
    return body + _checksum(body)


def unpack(blob: bytes | bytearray | memoryview | Container) -> Container:
    """The container of a blob.

    Args:
        blob: what `pack` returned. A container is returned as it is, so functions that take a blob
            also take one that is already unpacked.

    Returns:
        The container that was packed, with exactly its parameters and messages.

    Raises:
        ValueError: anything that `pack` does not write: other data, another version, bytes missing,
            added or changed, or a header made by hand that is out of range or does not fit the
            payload.
    """
    if isinstance(blob, Container):
        return blob
    return _parse(_as_bytes(blob))[0]


def sizes(blob: bytes | bytearray | memoryview) -> Sizes:
    """Header and payload of a blob in bits, and the number of messages.

    Raises:
        ValueError: as `unpack` does.
    """
    blob = _as_bytes(blob)
    container, payload = _parse(blob)
    header_bits = 8 * (len(blob) - len(payload))
    return Sizes(header_bits, payload_bits=8 * len(payload), count=container.messages.size)


def _as_bytes(blob: Any) -> bytes:
    if not isinstance(blob, bytes | bytearray | memoryview):
        raise ValueError(
            f"blob: expected bytes, bytearray or memoryview, got {type(blob).__name__}"
        )
    return bytes(blob)


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).digest()


def _parse(blob: bytes) -> tuple[Container, bytes]:
    """The container of a blob, and its payload."""
    header, payload = _split(blob)
    fields, count = _read_header(header)
    # Fields are checked before messages are decoded, for these take memory.
    check_fields(Container(**fields, messages=np.zeros(0, np.int32)))
    messages = payloads.decode(payload, fields["num_bins"], count)
    container = Container(**fields, messages=messages)
    # Other spellings of the same header, or bits after the last message, would be a second blob.
    if pack(container) != blob:
        raise ValueError("blob: its contents can be read, but pack writes them as other bytes")
    return container, payload


def _split(blob: bytes) -> tuple[bytes, bytes]:
    """Header and payload of a blob whose lengths and checksum are right."""
    if not blob.startswith(_MAGIC):
        got = blob[: len(_MAGIC)]
        raise ValueError(f"not a gls_jax blob: expected {_MAGIC!r} at its start, got {got!r}")
    if len(blob) > len(_MAGIC) and blob[len(_MAGIC)] != VERSION:
        raise ValueError(f"unknown version {blob[len(_MAGIC)]}, expected {VERSION}")
    if len(blob) < _PREFIX.size:
        min_bytes = _PREFIX.size + _CHECKSUM_BYTES
        raise ValueError(f"truncated: expected at least {min_bytes} bytes, got {len(blob)}")
    _, _, header_bytes, payload_bytes = _PREFIX.unpack_from(blob)
    payload_start = _PREFIX.size + header_bytes
    payload_end = payload_start + payload_bytes
    num_bytes = payload_end + _CHECKSUM_BYTES
    if len(blob) < num_bytes:
        raise ValueError(f"truncated: expected {num_bytes} bytes, got {len(blob)}")
    if len(blob) > num_bytes:
        raise ValueError(f"bytes after the end: expected {num_bytes}, got {len(blob)}")
    # Only now, so that damage to the lengths is reported as such.
    if _checksum(blob[:payload_end]) != blob[payload_end:]:
        raise ValueError("checksum does not match: some of the bytes were changed")
    return blob[_PREFIX.size : payload_start], blob[payload_start:payload_end]


def _read_header(header: bytes) -> tuple[dict[str, Any], int]:
    """Fields by name, not yet checked, and the number of messages."""
    try:
        fields = json.loads(header.decode("ascii"))
    except (ValueError, RecursionError):  # a few kilobytes of brackets exhaust the parser's stack
        raise ValueError(f"header: expected JSON, got {shown(header)}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"header: expected a JSON object, got {shown(fields)}")
    expected = HEADER_FIELDS | {"count"}
    if fields.keys() != expected:
        missing = sorted(expected - fields.keys())
        unknown = shown(sorted(fields.keys() - expected))
        raise ValueError(f"header: expected other fields: missing {missing}, unknown {unknown}")
    count = fields.pop("count")
    check_int(count, "count", 0, MAX_SIZE)
    return fields, count
