"""Compressed messages are unpacked to a limit: 600 KB of zlib held a worker up with 3.7 GB of blanks."""

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Final

from kombu import compression

MB: Final = 1024 * 1024
LARGEST_BODY: Final = 16 * MB
"""Of a message, unpacked."""

_UNPACKERS: Final[dict[str, Callable[[], Any]]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}


class TooLargeError(ValueError):
    """The body is larger than `LARGEST_BODY`, or in a format whose size cannot be limited."""


def limit_unpacking() -> None:
    """Have kombu unpack no more than that in this process, on any transport."""
    for content_type in compression.encoders():
        pack, _ = compression.get_encoder(content_type)
        compression.register(pack, _limited(_UNPACKERS.get(content_type)), content_type)


def _limited(unpacker: Callable[[], Any] | None) -> Callable[[bytes], bytes]:
    def unpack(packed: bytes) -> bytes:
        if unpacker is None:
            raise TooLargeError
        stream = unpacker()
        body: bytes = stream.decompress(packed, LARGEST_BODY + 1)
        if len(body) > LARGEST_BODY:
            raise TooLargeError
        if not stream.eof:
            raise EOFError
        return body

    return unpack
