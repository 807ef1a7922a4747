"""Atomic writes, a single-writer lock, names that C code can open, and SHA-256."""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlff_student.core.errors import InputError, InterruptedRunError

logger = logging.getLogger(__name__)

DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")  # an open file of this process
LONGEST_NAME = 200  # bytes; file systems allow 255, of which the name of a temporary file adds some
# Errors of the operating system that say that a file cannot be written to its end.
CANNOT_WRITE = (
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EPERM, errno.EROFS,
)  # fmt: skip


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
    target = _destination(Path(path))
    if not _is_stream(target):
        _begin(target, path).unlink()
    elif not os.access(target, os.W_OK):
        raise InputError(f"cannot write {path}: {os.strerror(errno.EACCES)}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path whose file replaces `path` when the block ends without an error.

    A link is followed. What cannot be replaced, such as a device, a pipe or /dev/stdout, receives
    the content of the temporary file.

    Parameters
    ----------
    path : Path
        File to write.

    Yields
    ------
    Path
        File to write into, which exists and is empty; it is deleted if the block ends with an
        error.

    Raises
    ------
    InputError
        The folder does not exist or cannot be written to, or `path` is a folder itself.
    InterruptedRunError
        The disk is full or fails while the file is written. `path` is as it was.
    """
    path = Path(path)
    target = _destination(path)
    stream = _is_stream(target)
    temporary = _begin(Path(tempfile.gettempdir()) / target.name if stream else target, path)
    try:
        yield temporary
        if stream:
            _copy_into(target, temporary)
        else:
            os.replace(temporary, target)
    except OSError as error:
        ours = error.filename in (None, str(temporary), str(target))
        if ours and error.errno in CANNOT_WRITE:
            raise InterruptedRunError(f"cannot write {path}: {error.strerror}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _destination(path: Path) -> Path:
    """Follow the links of a path up to a file, which need not exist, or to an open file."""
    for _ in range(40):  # as many as Linux follows
        path = Path(os.path.abspath(path))
        if DESCRIPTOR.fullmatch(str(path)) or not os.path.islink(path):
            return path
        path = Path(os.path.realpath(path.parent)) / os.readlink(path)
    raise InputError(f"cannot write {path}: {os.strerror(errno.ELOOP)}")


def _is_stream(path: Path) -> bool:
    """Return whether a path is something that another file cannot replace."""
    if DESCRIPTOR.fullmatch(str(path)):
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _copy_into(path: Path, source: Path) -> None:
    """Write the content of a file into a device, a pipe or an open file of this process."""
    descriptor = DESCRIPTOR.fullmatch(str(path))
    sys.stdout.flush()  # what was printed before comes first
    with (
        source.open("rb") as content,
        # Opened again by its name, an open file would be written from its beginning.
        open(os.dup(int(descriptor[1])) if descriptor else path, "wb") as stream,
    ):
        shutil.copyfileobj(content, stream)


def _begin(target: Path, path: Path) -> Path:
    """Make the temporary file for `target`; messages name `path`."""
    if os.path.isdir(target):  # is_dir raises for a name that is too long
        raise InputError(f"cannot write {path}: it is a folder")
    if not os.path.isdir(target.parent):
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    name = target.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    temporary = target.with_name(f".{name}.{os.getpid()}.part")
    try:
        os.stat(target)  # a name that is too long is refused now, not after the work
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        temporary.touch()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    return temporary


@contextmanager
def only_writer(path: Path, remedy: str) -> Iterator[None]:
    """Lock `path`, so that two processes do not overwrite each other's results.

    The lock is released when its process ends, even if that is killed; the lock file stays.

    Parameters
    ----------
    path : Path
        File or folder to lock; the lock file is a hidden file beside the file or in the folder. It
        contains the process that holds the lock.
    remedy : str
        What the user can do if another process holds the lock; the message ends with it.

    Raises
    ------
    InputError
        Another process holds the lock, or the lock file cannot be written.
    """
    file = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    try:
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        _lock(lock, path, remedy)
        yield
    finally:
        os.close(lock)


def _lock(lock: int, path: Path, remedy: str) -> None:
    """Lock an open file and write this process into it; see `only_writer`."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(lock, 200).decode(errors="replace")
        who = f" ({holder})" if holder else ""
        raise InputError(f"another process is writing {path}{who}; {remedy}") from error
    except OSError as error:  # a file system without locks
        logger.warning("no lock on %s (%s); start no second process there", path, error.strerror)
    with suppress(OSError):  # on a full disk the lock holds without the name of its process
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())


@contextmanager
def ascii_path(path: Path) -> Iterator[str]:
    """Give a name of a file that has only ASCII characters, as the C code of MDTraj requires.

    Parameters
    ----------
    path : Path
        File to read or write.

    Yields
    ------
    str
        The path itself, or the name of a temporary link to it with the same endings.
    """
    if str(path).isascii():
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        endings = [ending for ending in path.suffixes[-2:] if ending.isascii()]
        link = Path(folder) / "".join(["file", *endings])
        link.symlink_to(os.path.abspath(path))
        yield str(link)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, as `sha256sum` prints it.

    Parameters
    ----------
    path : Path
        File that fits into memory.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()
