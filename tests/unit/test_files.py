"""Writing of files: names of any kind, links, devices, full disks, locks; settings from YAML."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlff_student.core.errors import InputError, InterruptedRunError
from mlff_student.core.files import ascii_path, atomic_write, only_writer, require_writable
from mlff_student.core.results import read_json, write_json
from mlff_student.core.settings import read_settings

NAMES = ("two words", "it's", 'a "b" c', "$HOME", "-dash", "ü\n🧪", "x" * 255)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file can be longer than 100 bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_written(name, tmp_path):
    path = tmp_path / name
    require_writable(path)
    with atomic_write(path) as temporary:
        assert not path.exists()
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == [name]
    with ascii_path(path) as alias:
        assert alias.isascii()
        assert Path(alias).read_bytes() == b"new"


def test_name_that_is_too_long_is_refused_before_the_work(tmp_path):
    with pytest.raises(InputError, match="File name too long"):
        require_writable(tmp_path / ("x" * 256))
    assert os.listdir(tmp_path) == []


def test_full_disk_leaves_the_old_file(tmp_path, small_disk):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with pytest.raises(InterruptedRunError, match=r"cannot write .*model\.pt"):
        with atomic_write(path) as temporary, temporary.open("wb", buffering=0) as file:
            file.write(bytes(100))
            file.write(b"one byte too many")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.pt"]


def test_errors_about_other_files_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "out"):
        (tmp_path / "missing").read_text()
    assert os.listdir(tmp_path) == []


def test_links_are_followed(tmp_path):
    (tmp_path / "results").mkdir()
    target = tmp_path / "results" / "real.json"
    target.write_text("old")
    (tmp_path / "folder").symlink_to("results")
    link = tmp_path / "link.json"
    link.symlink_to("folder/real.json")
    write_json(link, {"a": 1})
    assert link.is_symlink() and read_json(target) == {"a": 1}
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="symbolic links"):
        require_writable(loop)


def test_pipes_receive_the_content(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    require_writable(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        write_json(pipe, {"a": 1})
        assert json.loads(reader.communicate(timeout=30)[0]) == {"a": 1}
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_open_files_receive_the_content(name, tmp_path):
    """In the order in which it is printed, after what was in the file before."""
    script = (
        "import pathlib, sys; from mlff_student.core.results import write_json\n"
        f"print('first'); write_json(pathlib.Path({name!r}), [1]); print('last')"
    )
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open("a") as file:
        subprocess.run([sys.executable, "-c", script], stdout=file, check=True, timeout=60)
    assert log.read_text() == "before\nfirst\n[\n  1\n]\nlast\n"
    assert os.listdir(tmp_path) == ["log"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_device_that_is_full():
    device = Path("/dev/full")
    require_writable(device)
    with pytest.raises(InterruptedRunError, match="cannot write /dev/full: No space left"):
        write_json(device, {})
    assert stat.S_ISCHR(os.stat(device).st_mode)


@pytest.mark.parametrize("name", ["file.h5", "folder"])
def test_lock_ends_with_its_process(name, tmp_path):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    script = (
        "import pathlib, sys, time; from mlff_student.core.files import only_writer\n"
        "with only_writer(pathlib.Path(sys.argv[1]), ''): print('locked', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout and other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match=rf"process {other.pid} on .*; wait for it"):
            with only_writer(path, "wait for it"):
                pass
        other.kill()
        other.wait()
        with only_writer(path, "wait for it"):
            pass


def test_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    """The kernel's answer of a network file system without a lock service."""

    def refused(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    with only_writer(tmp_path, ""):
        pass
    assert f"no lock on {tmp_path} (No locks available)" in caplog.text


@dataclass
class Options:
    length: float = 1.0
    name: str = ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"length: " + b"9" * 400, "too large"),
        (b"name: 2020-99-99", "not YAML"),
        (b"[" * 5000, "not YAML"),
        (b"name: \xe9", "not YAML"),
        (b"\x00", "not YAML"),
        (b"[1]: 2", "not YAML"),
        (b"lengths: 1", "did you mean 'length'"),
    ],
)
def test_damaged_settings(content, message, tmp_path):
    path = tmp_path / "options.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_settings(path, Options)


def test_encoding_of_settings(tmp_path):
    """The locale of the terminal has no influence."""
    path = tmp_path / "options.yaml"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes("name: Müller\n".encode(encoding))
        assert read_settings(path, Options) == Options(name="Müller")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_damaged_json(content, tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json"):
        read_json(path)
