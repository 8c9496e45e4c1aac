"""Makes the ids of objects, of the same object of the same job always the same; knows hashes, no outlines.

The id is `uuid.uuid5(NAMESPACE_OID, "key/class/y/x")`: SHA-1 over the namespace and the name (RFC 9562, section 5.5;
FIPS 180-4, section 6.1). A gigapixel holds millions of objects, and hashing them one call after the other took a
quarter of the time of writing them; the loop is compiled instead.
"""

from __future__ import annotations

import uuid

import numpy as np
import numpy.typing as npt

from unetpp.finalize.compiled import compiled
from unetpp.finalize.outlines import Ints

Bytes = npt.NDArray[np.uint8]
_BLOCK, _TEXT = 64, 36
_MASK = 0xFFFFFFFF
_START = np.array([0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0], np.int64)
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_MOST_DIGITS = 3 * 21
"""Of three numbers of 64 bits and two strokes, rounded up."""


class Identities:
    """Makes the ids of one job's objects, many at once."""

    def __init__(self, key: str) -> None:
        self._begun = np.frombuffer(uuid.NAMESPACE_OID.bytes + f"{key}/".encode(), np.uint8)

    def of(self, labels: npt.NDArray[np.uint8], first: Ints) -> Bytes:
        """Return (n, 36) ids in ASCII of objects with class values (n,) and first pixels (n, 2) as (y, x), all >= 0."""
        return _ids(self._begun, labels, first)


@compiled
def _ids(begun: Bytes, labels: Bytes, first: Ints) -> Bytes:
    """Return (n, 36) the text of the ids; every name begins with the same bytes."""
    text = np.empty((len(labels), _TEXT), np.uint8)
    message = np.zeros(len(begun) + _MOST_DIGITS + 2 * _BLOCK, np.uint8)
    for k in range(len(begun)):  # slices take seconds to compile
        message[k] = begun[k]
    words, digits, begin, state = np.empty(80, np.int64), np.empty(21, np.uint8), _START.copy(), _START.copy()
    shared = len(begun) // _BLOCK * _BLOCK
    for at in range(0, shared, _BLOCK):
        _compress(begin, message[at : at + _BLOCK], words)
    for n in range(len(labels)):
        used = _decimal(message, len(begun), np.int64(labels[n]), digits)
        for axis in range(2):
            message[used] = 47  # a stroke
            used = _decimal(message, used + 1, first[n, axis], digits)
        end = _padded(message, used)
        for k in range(len(state)):
            state[k] = begin[k]
        for at in range(shared, end, _BLOCK):
            _compress(state, message[at : at + _BLOCK], words)
        _write(state, text[n])
    return text


@compiled
def _decimal(message: Bytes, used: int, value: np.int64, digits: Bytes) -> int:
    """Append a number >= 0 to the message; returns where that ends."""
    count, rest = 0, value
    while count == 0 or rest > 0:
        digits[count] = 48 + rest % 10
        rest //= 10
        count += 1
    for k in range(count):
        message[used + k] = digits[count - 1 - k]
    return used + count


@compiled
def _padded(message: Bytes, used: int) -> int:
    """Pad the message as SHA-1 wants it: a one, zeros, and its bits as a number of 64 bits; returns where that ends."""
    end = (used + 8) // _BLOCK * _BLOCK + _BLOCK
    message[used] = 0x80
    for k in range(used + 1, end):
        message[k] = 0
    bits = 8 * used
    for k in range(8):
        message[end - 1 - k] = bits >> (8 * k) & 0xFF
    return end


@compiled
def _compress(state: Ints, block: Bytes, words: Ints) -> None:
    """Take one block of 64 bytes into the state; 32-bit words in 64-bit integers, which are cut where they overflow."""
    for t in range(16):
        words[t] = block[4 * t] << 24 | block[4 * t + 1] << 16 | block[4 * t + 2] << 8 | block[4 * t + 3]
    for t in range(16, 80):
        word = words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16]
        words[t] = (word << 1 | word >> 31) & _MASK
    a, b, c, d, e = state[0], state[1], state[2], state[3], state[4]
    for t in range(80):
        if t < 20:
            mixed, constant = (b & c) | (~b & d), 0x5A827999
        elif t < 40:
            mixed, constant = b ^ c ^ d, 0x6ED9EBA1
        elif t < 60:
            mixed, constant = (b & c) | (b & d) | (c & d), 0x8F1BBCDC
        else:
            mixed, constant = b ^ c ^ d, 0xCA62C1D6
        turned = ((a << 5 | a >> 27) + mixed + e + constant + words[t]) & _MASK
        a, b, c, d, e = turned, a, (b << 30 | b >> 2) & _MASK, c, d
    state[0] = (state[0] + a) & _MASK
    state[1] = (state[1] + b) & _MASK
    state[2] = (state[2] + c) & _MASK
    state[3] = (state[3] + d) & _MASK
    state[4] = (state[4] + e) & _MASK


@compiled
def _write(state: Ints, text: Bytes) -> None:
    """Write the first 16 bytes of a digest as the text of a UUID of version 5."""
    at = 0
    for k in range(16):
        byte = state[k // 4] >> (24 - 8 * (k % 4)) & 0xFF
        if k == 6:
            byte = byte & 0x0F | 0x50  # version 5
        elif k == 8:
            byte = byte & 0x3F | 0x80  # the variant of RFC 9562
        if k == 4 or k == 6 or k == 8 or k == 10:
            text[at] = 45  # a dash
            at += 1
        text[at], text[at + 1] = _HEX[byte >> 4], _HEX[byte & 0x0F]
        at += 2
