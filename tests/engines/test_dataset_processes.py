"""Writers of one dataset that are killed, run out of disk space, or meet another process."""

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from random_labels import STRUCTURES, assert_holds, filled, numbers

from mlff_student.core.errors import InputError
from mlff_student.core.files import sha256
from mlff_student.distill.dataset import (
    LabelledStructure,
    dataset_sha256,
    open_dataset,
    read_dataset,
    read_summary,
)

# --- Dataset ------------------------------------------------------------------------------------


def forked(work: Callable[[], None]) -> multiprocessing.Process:
    """Start a process that can be killed; a fork needs no time for imports."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_killed_writer_leaves_complete_structures(tmp_path: Path):
    path, rng = tmp_path / "data.h5", np.random.default_rng(3)

    def write_all(structures: list[LabelledStructure]) -> None:
        with open_dataset(path, teacher="random", seed=1) as writer:
            for structure in structures:
                if structure.name not in writer.names:
                    writer.append(structure)

    everything = [numbers(f"s{k}", frames=9, atoms=20) for k in range(200)]
    kept = 0
    for _ in range(4):
        process = forked(lambda: write_all(everything))
        time.sleep(rng.uniform(0.03, 0.4))
        process.kill()
        process.join()
        if path.exists():
            count = len(read_summary(path).names)
            assert count >= kept
            assert_holds(path, everything[:count])
            kept = count
    assert kept
    del everything[kept + 20 :]
    write_all(everything)
    assert_holds(path, everything)


def test_dataset_can_be_read_while_it_is_written_and_packed(tmp_path: Path):
    """At any moment a reader gets complete structures, and no fewer than before."""
    path, everything = tmp_path / "data.h5", [numbers(f"s{k}") for k in range(60)]

    def write_all() -> None:
        for first in range(0, 60, 20):
            filled(path, everything[first : first + 20])

    process, seen, hashes = forked(write_all), 0, set()
    while process.is_alive() or seen < 60:
        if path.exists():
            summary, frames = read_dataset(path)
            assert (
                summary.names
                == frames.names
                == [structure.name for structure in everything][: len(frames.names)]
            )
            assert len(frames.energies) == 3 * len(frames.names) >= 3 * seen
            seen = len(frames.names)
            hashes.add(dataset_sha256(path))
    assert process.exitcode == 0
    assert len(hashes) > 1
    assert dataset_sha256(path) == sha256(path)
    assert_holds(path, everything)


def limited(path: Path, most: int, structures: list[LabelledStructure]) -> None:
    """Append with a limit of `most` bytes per file; exit with status 7 for an InputError."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        with open_dataset(path, teacher="random", seed=1) as writer:
            for structure in structures:
                writer.append(structure)
    except InputError as error:
        os._exit(7 if "is safe; make room" in str(error) else 8)
    except BaseException:
        os._exit(9)
    os._exit(0)


@pytest.mark.parametrize("room", [0, 1_000, 300_000])
def test_full_disk_loses_nothing(room: int, tmp_path: Path):
    """Either no shard can be written, or the packed file cannot; later all can be appended."""
    first = [numbers(f"s{k}", frames=9, atoms=20) for k in range(20)]
    more = [numbers(f"t{k}", frames=9, atoms=20) for k in range(60)]
    path = filled(tmp_path / "data.h5", first)
    process = forked(lambda: limited(path, room, more))
    process.join(60)
    assert process.exitcode == 7
    count = len(read_summary(path).names)
    assert count == (20 if room < 10_000 else 80)
    assert_holds(path, (first + more)[:count])
    filled(path, more[count - 20 :])
    assert_holds(path, first + more)
    assert not list(tmp_path.glob("**/*.part"))


def test_second_writer_is_refused(tmp_path: Path):
    path = tmp_path / "data.h5"

    def second() -> None:
        try:
            filled(path)
        except InputError as error:
            os._exit(7 if "another process is writing" in str(error) else 8)
        os._exit(0)

    with open_dataset(path, teacher="random", seed=1) as writer:
        writer.append(STRUCTURES[0])
        with pytest.raises(InputError, match="another process is writing"):
            filled(path)
        process = forked(second)
        process.join(60)
        assert process.exitcode == 7
        writer.append(STRUCTURES[1])
    assert_holds(path, STRUCTURES[:2])
    filled(path, STRUCTURES[2:])  # the lock went with its owner
    assert_holds(path, STRUCTURES)
