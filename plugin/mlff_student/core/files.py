"""Atomic writes, a single-writer lock, and SHA-256."""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mlff_student.core.errors import InputError


def require_writable(path: Path) -> None:
    """Check before a long job that `path` can be written at its end.

    Raises
    ------
    InputError
        The folder does not exist or cannot be written to, or `path` is a folder itself.
    """
    _begin(Path(path)).unlink()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path that replaces `path` when the block ends without an error.

    Raises
    ------
    InputError
        The same as of `require_writable`.
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


@contextmanager
def only_writer(path: Path, remedy: str) -> Iterator[None]:
    """Lock `path` against other writers, whose writes would overwrite each other.

    The lock is released when its process ends, also when that is killed; its empty file stays.

    Parameters
    ----------
    path : Path
        File to lock; the lock is a hidden file beside it.
    remedy : str
        What to do when another process holds the lock, for the message.

    Raises
    ------
    InputError
        Another process holds the lock, or the lock file cannot be written.
    """
    try:
        lock = _lock_of(path).open("w")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    with lock:
        for _ in range(5):  # `is_being_written` of another process holds the lock for an instant
            if _locks(lock):
                break
            time.sleep(0.1)
        else:
            raise InputError(f"another process is writing {path}; {remedy}")
        yield


def is_being_written(path: Path) -> bool:
    """Whether another process holds the lock of `only_writer`."""
    try:
        with _lock_of(path).open() as lock:
            return not _locks(lock)
    except OSError:
        return False


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _locks(lock: IO[str]) -> bool:
    """Take the lock if it is free, and tell whether it was."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def sha256(path: Path) -> str:
    """Hash of a file, as `sha256sum` prints it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
