"""Atomic writes, a single-writer lock, and SHA-256."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlff_student.core.errors import InputError


def require_writable(path: Path) -> None:
    """Check before a long job that `path` can be written when the job ends.

    Parameters
    ----------
    path : Path
        File that will be written.

    Raises
    ------
    InputError
        The folder does not exist or cannot be written to, or `path` is a folder itself.
    """
    _begin(Path(path)).unlink()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path whose file replaces `path` when the block ends without an error.

    Parameters
    ----------
    path : Path
        File to write.

    Yields
    ------
    Path
        File beside `path` to write into; it is deleted if the block ends with an error.

    Raises
    ------
    InputError
        The folder does not exist or cannot be written to, or `path` is a folder itself.
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
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    if os.path.isdir(path):  # is_dir raises for a name that is too long
        raise InputError(f"cannot write {path}: it is a folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    return temporary


@contextmanager
def only_writer(path: Path, remedy: str) -> Iterator[None]:
    """Lock `path`, so that two processes do not overwrite each other's results.

    The lock is released when its process ends, even if that is killed; the empty lock file stays.

    Parameters
    ----------
    path : Path
        File to lock; the lock file is a hidden file beside it.
    remedy : str
        What the user can do if another process holds the lock; the message ends with it.

    Raises
    ------
    InputError
        Another process holds the lock, or the lock file cannot be written.
    """
    try:
        lock = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process is writing {path}; {remedy}") from error
        except OSError:  # a file system without locks
            pass
        yield


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, as `sha256sum` prints it.

    Parameters
    ----------
    path : Path
        File that fits into memory.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()
