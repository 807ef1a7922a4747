"""Read the lines of text files that may be compressed, in the encodings of other programs."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from mlff_student.core.errors import InputError

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"  # first bytes of compressed files
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # PowerShell writes it where it redirects


def is_gzipped(path: Path) -> bool:
    """Return whether a file is compressed by gzip. Its name does not matter."""
    with path.open("rb") as file:
        return file.read(2) == GZIP


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file in UTF-8, UTF-16 with a byte order mark, or gzip.

    Bytes that are not text become replacement characters. A compressed file that was cut off ends
    where it was cut.

    Parameters
    ----------
    path : Path
        Text file.

    Yields
    ------
    str
        A line with its end. The last line has no end if it was cut off.

    Raises
    ------
    InputError
        The file is compressed by zstd, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start == ZSTD:
            raise InputError(f"{path} is compressed by zstd; decompress it: zstd -d {path}")
        encoding = "utf-16" if start.startswith(UTF_16) else "utf-8-sig"
        opened = gzip.open if start.startswith(GZIP) else open
        with opened(path, "rt", encoding=encoding, errors="replace") as lines:
            yield from lines
    except EOFError:  # of gzip
        return
    except (OSError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
