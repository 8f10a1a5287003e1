"""Payload: messages, each the number of one of L bins, as bits.

For a power of two a message takes `log2 L` bits, packed without gaps; for one bin it takes none.
Any other number of bins goes through a range coder that knows probabilities in steps of 2^-24. A
message then takes at most ``-log2(floor(2^24 / L) / 2^24)`` bits, never more than `log2 L` rounded
up, and within 0.0004 bits of `log2 L` up to 4,096 bins. The coder's own rounding adds 0.0002 bits
(measured), and the whole words at its end at most 64 bits per payload.
"""

from __future__ import annotations

import constriction
import numpy as np

__all__ = ["check_num_bins", "decode", "encode"]

# constriction's fixed-point probabilities have 24 bits.
_MAX_RANGE_CODED = 2**24
# Messages spread into bits at a time; a multiple of 8, so every chunk ends with a whole byte.
_CHUNK = 2**16


def check_num_bins(num_bins: int) -> None:
    """Raise `ValueError` if messages of `num_bins` bins cannot be coded."""
    if not _is_power_of_two(num_bins) and num_bins > _MAX_RANGE_CODED:
        raise ValueError(
            f"num_bins: expected a power of two or at most {_MAX_RANGE_CODED}, got {num_bins}"
        )


def encode(messages: np.ndarray, num_bins: int) -> bytes:
    """The payload of messages within range."""
    if not _is_power_of_two(num_bins):
        coder = constriction.stream.queue.RangeEncoder()
        coder.encode(messages, constriction.stream.model.Uniform(num_bins))
        return coder.get_compressed().astype("<u4").tobytes()
    bits_per_message = num_bins.bit_length() - 1
    if bits_per_message == 0:
        return b""
    chunks = []
    for start in range(0, messages.size, _CHUNK):
        # Big-endian words: the bits of each message come highest first, after leading zeros.
        words = messages[start : start + _CHUNK].astype(">u4")
        word_bits = np.unpackbits(words.view(np.uint8).reshape(-1, 4), axis=1)
        message_bits = word_bits[:, 32 - bits_per_message :]
        chunks.append(np.packbits(message_bits).tobytes())
    return b"".join(chunks)


def decode(payload: bytes, num_bins: int, count: int) -> np.ndarray:
    """`count` messages, read-only.

    Memory is within a constant factor of the payload's, whatever `count` is.
    """
    if _is_power_of_two(num_bins):
        messages = _decode_bits(payload, num_bins.bit_length() - 1, count)
    else:
        messages = _decode_ranges(payload, num_bins, count)
    messages.setflags(write=False)
    return messages


def _decode_bits(payload: bytes, bits_per_message: int, count: int) -> np.ndarray:
    num_bytes = -(-count * bits_per_message // 8)
    if len(payload) != num_bytes:
        raise ValueError(
            f"payload: expected {num_bytes} bytes for {count} messages, got {len(payload)}"
        )
    if bits_per_message == 0:
        # One number in memory, however large a forged count is.
        return np.broadcast_to(np.int32(0), count)
    packed = np.frombuffer(payload, np.uint8)
    messages = np.empty(count, np.int32)
    for start in range(0, count, _CHUNK):
        chunk_size = min(_CHUNK, count - start)
        first_byte = start * bits_per_message // 8
        packed_bits = np.unpackbits(packed[first_byte:], count=chunk_size * bits_per_message)
        # Leading zeros make 32 bits of each message, which are one big-endian word.
        word_bits = np.zeros((chunk_size, 32), np.uint8)
        word_bits[:, 32 - bits_per_message :] = packed_bits.reshape(chunk_size, bits_per_message)
        words = np.packbits(word_bits, axis=1).view(">u4")
        messages[start : start + chunk_size] = words[:, 0]
    return messages


def _decode_ranges(payload: bytes, num_bins: int, count: int) -> np.ndarray:
    # No bin has a probability above 1/2 (the last one takes what rounding leaves), so a message
    # costs a bit or more.
    if len(payload) % 4 or count > 8 * len(payload):
        raise ValueError(
            f"payload: {len(payload)} bytes cannot hold {count} range-coded messages "
            f"of {num_bins} bins"
        )
    words = np.frombuffer(payload, "<u4").astype(np.uint32)
    coder = constriction.stream.queue.RangeDecoder(words)
    try:
        return coder.decode(constriction.stream.model.Uniform(num_bins), count)
    except AssertionError:
        raise ValueError(
            f"payload: expected range-coded messages of {num_bins} bins, "
            "got bytes that do not decode"
        ) from None


def _is_power_of_two(size: int) -> bool:
    return size & (size - 1) == 0
