"""The upload half of xet for the stand-in Hub: takes xorbs and shards and finds the files in their
chunks.

A file is a run of consecutive chunks, so the shards, which say which run, need not be read: the
commit names a sha256, and the run that has it is the file. Reading goes by plain HTTP, since no xet
hash is announced.
The format is that of https://huggingface.co/docs/xet/xorb.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator


def chunks(xorb: bytes) -> Iterator[bytes]:
    """The chunks of a serialised xorb: an 8-byte header each, then the data as it is, LZ4, or
    byte-grouped LZ4.
    """
    import pyarrow as pa

    at = 0
    while at + 8 <= len(xorb) and xorb[at] == 0:
        packed = int.from_bytes(xorb[at + 1 : at + 4], "little")
        scheme, size = xorb[at + 4], int.from_bytes(xorb[at + 5 : at + 8], "little")
        data = xorb[at + 8 : at + 8 + packed]
        at += 8 + packed
        if scheme:
            data = pa.decompress(data, decompressed_size=size, codec="lz4", asbytes=True)
        if scheme == 2:  # the first bytes of all groups of four, then the second ones, ...
            whole, start = bytearray(size), 0
            for place in range(4):
                count = len(range(place, size, 4))
                whole[place::4] = data[start : start + count]
                start += count
            data = bytes(whole)
        yield data


def find_file(xorbs: list[bytes], sha256: str) -> bytes | None:
    """The bytes with this sha256 among the runs of consecutive chunks."""
    for xorb in xorbs:
        parts = list(chunks(xorb))
        for first in range(len(parts)):
            digest = hashlib.sha256()
            for last in range(first, len(parts)):
                digest.update(parts[last])
                if digest.hexdigest() == sha256:
                    return b"".join(parts[first : last + 1])
    return None
