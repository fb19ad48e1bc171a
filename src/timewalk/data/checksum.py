"""CRC-32C (Castagnoli), the checksum of TFRecord and of the index of frames.

By the package crc32c, which runs in C; where that is not installed (the bare GPU node) by numpy,
which gives the same numbers more slowly (`docs/stages/shards.md` has figures).
"""

import functools
from collections.abc import Callable

import numpy as np

Buffer = bytes | bytearray | memoryview

_native: Callable[[Buffer], int] | None
try:
    from crc32c import crc32c as _native
except ImportError:
    _native = None

_MASK_DELTA = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78  # reflected


def crc32c(data: Buffer) -> int:
    """Return the CRC-32C of ``data``, by the package crc32c or else by numpy."""
    return _native(data) if _native else crc32c_numpy(data)


def masked_crc32c(data: Buffer) -> int:
    """Return the CRC-32C as TFRecord stores it."""
    return mask_crc(crc32c(data))


def mask_crc(crc: int) -> int:
    """Return a checksum masked: rotated right by 15 bits, plus a constant, modulo 2**32."""
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def unmask_crc(masked: int) -> int:
    """Return the checksum that :func:`mask_crc` was given."""
    rotated = (masked - _MASK_DELTA) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def crc32c_numpy(data: Buffer) -> int:
    """Return the CRC-32C of ``data`` with numpy alone.

    A checksum is linear over GF(2): that of two neighbouring blocks is the first one's, shifted
    by the second's length, xor the second's. So blocks of 1, 2, 4, ... bytes are joined pairwise,
    all pairs of a level at once.
    """
    if len(data) < 4:
        return _bytewise(data)
    # Starting from ffffffff is the same as inverting the first four bytes and starting from 0.
    octets = np.frombuffer(data, np.uint8).copy()
    octets[:4] ^= 0xFF
    sums = _byte_table()[octets]
    level = 0
    while len(sums) > 1:
        if len(sums) % 2:  # a leading zero changes nothing
            sums = np.concatenate([np.zeros(1, np.uint32), sums])
        sums = _shifted(sums[0::2], level) ^ sums[1::2]
        level += 1
    return int(sums[0]) ^ 0xFFFFFFFF


def _bytewise(data: Buffer) -> int:
    table = _byte_table()
    crc = 0xFFFFFFFF
    for byte in bytes(data):
        crc = int(table[(crc ^ byte) & 0xFF]) ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@functools.cache
def _byte_table() -> np.ndarray:
    table: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table.astype(np.uint32)


def _shifted(sums: np.ndarray, level: int) -> np.ndarray:
    """Return checksums after 2**level zero bytes."""
    tables = _shift_tables(level)
    octets = np.ascontiguousarray(sums.astype("<u4")).view(np.uint8).reshape(-1, 4)
    result: np.ndarray = tables[0][octets[:, 0]]
    for position in (1, 2, 3):
        result = result ^ tables[position][octets[:, position]]
    return result


@functools.cache
def _shift_tables(level: int) -> np.ndarray:
    """Return (4, 256): what each byte of a checksum becomes after 2**level zero bytes."""
    octets = np.arange(256, dtype=np.uint32)
    words = np.stack([octets << np.uint32(8 * position) for position in range(4)])
    if level == 0:
        return _byte_table()[words & 0xFF] ^ (words >> np.uint32(8))
    once = _shifted(words.reshape(-1), level - 1)
    return _shifted(once, level - 1).reshape(4, 256)
