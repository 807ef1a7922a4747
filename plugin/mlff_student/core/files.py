"""Writing files whole or not at all, by one writer at a time; and telling them apart."""

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


@contextmanager
def only_writer(path: Path, remedy: str) -> Iterator[None]:
    """Keep other writers out: what the first one writes would be lost in what the second does.

    The lock goes when its process ends, however it ends; its empty file stays.

    Raises
    ------
    InputError : another process has it (`remedy` says what to do), or it cannot be written.
    """
    try:
        lock = _lock_of(path).open("w")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    with lock:
        for _ in range(5):  # a reader holds it for an instant, to see whether another does
            if _locks(lock):
                break
            time.sleep(0.1)
        else:
            raise InputError(f"another process is writing {path}; {remedy}")
        yield


def is_being_written(path: Path) -> bool:
    """Whether an `only_writer` of another process has it."""
    try:
        with _lock_of(path).open() as lock:
            return not _locks(lock)
    except OSError:
        return False


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _locks(lock: IO[str]) -> bool:
    """Whether the lock could be had."""
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
