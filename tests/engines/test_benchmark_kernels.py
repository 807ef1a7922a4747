"""What the benchmarks of kernels and batches measure and write, and how a stopped one resumes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mlff_student.archive.backends import unavailable
from mlff_student.benchmark import kernels, measure
from mlff_student.benchmark.arithmetic import work
from mlff_student.benchmark.batch import BatchSettings, benchmark_batch
from mlff_student.benchmark.kernels import BenchmarkSettings, benchmark_kernels
from mlff_student.benchmark.memory import peak_memory
from mlff_student.benchmark.records import read_records
from mlff_student.benchmark.tables import records_table, remarks, targets_table
from mlff_student.benchmark.targets import judge_targets, load_targets
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.results import machine_facts

needs_native = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


# --- Timing and memory ---------------------------------------------------------------------------


@needs_native
def test_memory_of_the_native_kernels_grows_as_atoms():
    small, large = (peak_memory("ultra_tiny", "native", atoms) for atoms in (2000, 4000))
    assert large == pytest.approx(2.0 * small, rel=0.25)
    assert 4000 < small / 2000 < 40_000  # features alone are 8 rows of 32 floats a layer


# --- A run ---------------------------------------------------------------------------------------


SETTINGS = BenchmarkSettings(("ultra_tiny",), atoms=(22,), threads=(1,), seconds=0.01)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run that was stopped after the first of its two jobs."""
    path = tmp_path_factory.mktemp("benchmark") / "kernels.json"

    def stop(job: str, done: int, jobs: int) -> None:
        assert jobs == 2
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark_kernels(SETTINGS, path, stop)
    return path


@pytest.fixture
def output(killed: Path, tmp_path: Path) -> Path:
    """A copy of that file."""
    copy = tmp_path / killed.name
    copy.write_text(killed.read_text())
    return copy


@needs_native
def test_killed_run_has_written_its_records(killed: Path):
    content = json.loads(killed.read_text())
    assert content["command"] == "benchmark kernels"
    assert content["model"] == "ultra_tiny"
    assert content["settings"]["atoms"] == [22]
    assert {"processor", "cores", "instruction_set", "torch"} <= set(content["machine"])
    assert sorted(p.name for p in killed.parent.iterdir()) == ["kernels.json"]
    native, portable = content["results"]
    assert native.keys() == portable.keys()
    assert (native["backend"], portable["backend"]) == ("native", "portable")
    for record in (native, portable):
        assert record["note"] == ""
        assert all(isinstance(value, int | float | str) for value in record.values() if value)
        assert (record["atoms"], record["threads"], record["edges"]) == (22, 1, 330)
        seconds = 1e-3 * record["ms"]
        assert record["us_per_atom"] == pytest.approx(1e6 * seconds / 22)
        assert record["gflop"] == work(32, 2, 22, 330).gflop
        assert record["gflop_per_s"] == pytest.approx(record["gflop"] / seconds)
        share = record["gflop_per_s"] / record["sgemm_gflop_per_s"]
        assert record["sgemm_fraction"] == pytest.approx(share)
        assert record["ratio_to_portable"] == pytest.approx(portable["ms"] / record["ms"])
        assert record["ms_with_search"] > 0.0
        assert record["calls"] >= 3
        assert 0.0 < record["cores_used"] < 1.5
        kilobytes = 22 * record["peak_memory_kb_per_atom"]
        assert 1e3 * record["peak_memory_mb"] == pytest.approx(kilobytes)
        assert 0.0 < kilobytes < 1e5
    assert native["sgemm_gflop_per_s"] == portable["sgemm_gflop_per_s"] > 0.0


@needs_native
def test_killed_run_resumes_without_repeating(output: Path):
    first = json.loads(output.read_text())["results"]
    records = benchmark_kernels(SETTINGS, output)
    assert records[:2] == first  # not measured again
    (step,) = records[2:]
    assert (step["measurement"], step["model"], step["atoms"]) == ("openmm_step", "ultra_tiny", 22)
    if not step["note"]:
        assert step["overhead_ms"] == pytest.approx(step["ms"] - step["kernel_ms"])
        assert step["ms"] > 0.0
    assert json.loads(output.read_text())["results"] == records
    before = output.stat().st_mtime_ns
    assert benchmark_kernels(SETTINGS, output) == records
    assert output.stat().st_mtime_ns == before  # nothing was left to do


@needs_native
def test_number_of_threads_is_set(output: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    before = torch.get_num_threads()
    monkeypatch.setattr(measure, "_memory", lambda *_: {})  # takes processes and seconds

    def look(job: measure.KernelJob, *_: Any) -> list[dict[str, Any]]:
        seen.append((job.threads, torch.get_num_threads()))
        return real(job, *_)

    real = kernels.measure
    monkeypatch.setattr(kernels, "measure", look)
    cores = machine_facts()["cores"]
    threads = (cores, 1)
    settings = BenchmarkSettings(("ultra_tiny",), (100,), threads, 0.01, openmm=False)
    records = benchmark_kernels(settings)
    assert seen == [(count, count) for count in sorted({1, cores})]
    assert torch.get_num_threads() == before
    many = [record for record in records if record["threads"] == cores > 1]
    assert all(record["speedup_by_threads"] > 0.0 for record in many)


@needs_native
def test_structure_too_large_for_the_memory_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "available_memory", lambda: 10**7)
    monkeypatch.setattr(measure, "_memory", lambda *_: {})  # starts processes, takes seconds
    settings = BenchmarkSettings(("ultra_tiny",), (400,), (1,), 0.01, openmm=False)
    native, portable = benchmark_kernels(settings)
    assert portable["ms"] is None
    assert portable["note"].startswith("not measured: it would need 0.")
    assert "0.0 GB are available" in portable["note"]
    assert native["ms"] > 0.0
    assert native["ratio_to_portable"] is None
    assert any(
        "ultra_tiny, portable, 400 atoms: not measured" in line for line in remarks([portable])
    )


# --- Refused before anything runs ----------------------------------------------------------------


def test_output_that_cannot_be_written_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no folder"):
        benchmark_kernels(SETTINGS, tmp_path / "none" / "k.json")


@needs_native
def test_float64_is_refused(tiny_archive64: Path):
    with pytest.raises(MissingDependencyError, match="the archive in float64"):
        benchmark_kernels(BenchmarkSettings(("ultra_tiny", str(tiny_archive64))))


@needs_native
def test_output_of_another_benchmark_is_refused(output: Path):
    with pytest.raises(InputError, match=r"another benchmark \(atoms differ\)"):
        benchmark_kernels(BenchmarkSettings(("ultra_tiny",), (30,), (1,), 0.01), output)
    text = output.read_text()
    content = json.loads(text)
    content["machine"]["library_sha256"] = "0" * 64
    output.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"another benchmark \(library_sha256 differ\)"):
        benchmark_kernels(SETTINGS, output)
    output.write_text("{}")
    with pytest.raises(InputError, match="is no file of benchmark kernels"):
        benchmark_kernels(SETTINGS, output)
    assert output.read_text() == "{}"


@needs_native
def test_records_are_read_back(output: Path):
    content = json.loads(output.read_text())
    assert read_records(output, "benchmark kernels") == (content["machine"], content["results"])
    with pytest.raises(InputError, match="records of benchmark lammps are needed"):
        read_records(output, "benchmark lammps")
    output.write_text("[]")
    with pytest.raises(InputError, match="is no file of benchmark kernels"):
        read_records(output, "benchmark kernels")


BATCH = BatchSettings(("ultra_tiny",), "O", structures=3, backends=("portable",), seconds=0.01)


def test_killed_batch_benchmark_resumes(tmp_path: Path):
    """Each of the three kinds of structures has a record, and records in the file are kept."""

    def stop(job: str, done: int, jobs: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    path = tmp_path / "batch.json"
    with pytest.raises(KeyboardInterrupt):
        benchmark_batch(BATCH, path, stop)
    before = json.loads(path.read_text())["results"]
    records = benchmark_batch(BATCH, path)
    assert [(row["kind"], row["atoms"]) for row in records] == [
        ("molecules", 9),
        ("conformers", 9),
        ("conformers", 3),
    ]
    assert records[:2] == before
    for row in records:
        assert row["structures_per_s"] == pytest.approx(1e6 / row["batch_us"])
        assert row["batch_speedup"] == pytest.approx(row["one_by_one_us"] / row["batch_us"])


# --- Targets, tables -----------------------------------------------------------------------------


@needs_native
def test_tables_have_a_row_for_each_record(output: Path):
    records = json.loads(output.read_text())["results"]
    assert records_table(records).row_count == 1
    assert targets_table(judge_targets(records, load_targets())).row_count == 1
    busy = [record | {"cores_used": 0.4} for record in records]
    assert list(remarks(busy))[-1].startswith("Other programs took up to 60% of a core")
