"""Writing files whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


def require_writable(path: Path) -> None:
    """Find out before a long job whether `path` can be written at its end.

    Raises
    ------
    InputError : the folder does not exist or cannot be written to, or `path` is a folder itself.
    """
    _begin(Path(path)).unlink()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Temporary path beside `path` that replaces it when the block ends without an error.

    Raises
    ------
    InputError : as `require_writable`.
    """
    path = Path(path)
    temporary = _begin(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _begin(path: Path) -> Path:
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: no folder {path.parent}")
    if os.path.isdir(path):  # is_dir raises for a name that is too long
        raise InputError(f"cannot write {path}: it is a folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    return temporary
