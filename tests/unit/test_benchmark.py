"""The benchmark of the kernels: what it counts, measures and writes, how it goes on."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from ase.neighborlist import neighbor_list
from scipy.spatial.distance import pdist
from torch.utils.flop_counter import FlopCounterMode

from mlff_student.archive.native import unavailable
from mlff_student.archive.registry import available_models
from mlff_student.benchmark import kernels, measure
from mlff_student.benchmark.arithmetic import SPLINE, work
from mlff_student.benchmark.batch import BatchSettings, benchmark_batch
from mlff_student.benchmark.kernels import BenchmarkSettings, benchmark_kernels
from mlff_student.benchmark.memory import peak_memory
from mlff_student.benchmark.records import read_records
from mlff_student.benchmark.settings import models_of
from mlff_student.benchmark.structures import thermal_structure
from mlff_student.benchmark.tables import records_table, remarks, targets_table
from mlff_student.benchmark.targets import judge_targets, load_targets
from mlff_student.benchmark.timing import in_turns
from mlff_student.core.errors import ArchiveError, InputError, MissingDependencyError
from mlff_student.core.results import machine_facts
from mlff_student.model.student import PRESETS, Student

needs_native = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
ELEMENTS = ["H", "C", "N", "O", "F"]
CUTOFF = 5.0


# --- Arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_linear_maps_are_what_torch_counts(preset: str):
    """The portable student without edges: what is left are the maps of its atoms."""
    config, atoms = PRESETS[preset], 10
    student = Student(config).requires_grad_(False)
    none = torch.zeros(0, 3), torch.zeros(2, 0, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        student.network(*none, torch.zeros(atoms, dtype=torch.int64), atoms)
    count = work(config.channels, config.layers, atoms, 0)
    assert count.map_flop == counter.get_total_flops()
    assert count.edge_flop == 0


class Number:
    """A scalar that counts the additions and multiplications it takes part in."""

    count: ClassVar[int] = 0

    def __init__(self, value: Any) -> None:
        self.value = value

    def __add__(self, other: "Number") -> "Number":
        Number.count += 1
        return Number(self.value + other.value)

    def __mul__(self, other: "Number") -> "Number":
        Number.count += 1
        return Number(self.value * other.value)


def total(terms: list[Number]) -> Number:
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def one_edge(first: bool) -> int:
    """Operations of one edge and channel, forward and adjoint; the numbers are autograd's.

    w and dw are a filter's value and slope, a part's message x = phi w. What is added to are sums
    over edges, which start from zero here.
    """
    generator = torch.Generator().manual_seed(0)
    parts = 2 if first else 3

    def draw(count: int) -> list[torch.Tensor]:
        drawn = torch.randn(count, dtype=torch.float64, generator=generator)
        return [value.clone().requires_grad_() for value in drawn]

    phi, w, dw = draw(parts), draw(parts), draw(parts)
    unit, mu_j, g_mu = draw(3), draw(3), draw(3)
    (g_q,) = draw(1)

    def message(phi: list, w: list, unit: list, mu_j: list, zero: Any) -> list:
        """The addends to q and mu."""
        x = [p * value for p, value in zip(phi, w, strict=True)]
        q, mu = zero + x[0], [zero + x[1] * u for u in unit]
        if not first:
            mu = [m + x[2] * other for m, other in zip(mu, mu_j, strict=True)]
        return [q, *mu]

    def numbers(values: list) -> list[Number]:
        return [Number(value.detach()) for value in values]

    zero = Number(torch.tensor(0.0, dtype=torch.float64))
    Number.count = 0
    message(numbers(phi), numbers(w), numbers(unit), numbers(mu_j), zero)

    # Adjoint. A product phi w that the forward pass has made is not counted again.
    x = numbers([p * value for p, value in zip(phi, w, strict=True)])
    n_phi, n_w, n_dw = numbers(phi), numbers(w), numbers(dw)
    n_unit, n_mu, n_g = numbers(unit), numbers(mu_j), numbers(g_mu)
    along = total([g * u for g, u in zip(n_g, n_unit, strict=True)])
    g_x = [Number(g_q.detach()), along]
    if not first:
        g_x.append(total([g * m for g, m in zip(n_g, n_mu, strict=True)]))
    by_phi = [] if first else [zero + g * value for g, value in zip(g_x, n_w, strict=True)]
    by_distance = zero
    for g, p, slope in zip(g_x, n_phi, n_dw, strict=True):
        by_distance = by_distance + g * p * slope
    by_unit = [zero + g * x[1] for g in n_g]
    by_mu = [] if first else [zero + g * x[2] for g in n_g]
    counted = Number.count

    outputs = message(phi, w, unit, mu_j, 0.0)
    energy = sum(g * out for g, out in zip([g_q, *g_mu], outputs, strict=True))
    energy.backward()
    distance = sum(value.grad * slope for value, slope in zip(w, dw, strict=True))
    found = [*by_phi, *by_unit, *by_mu, by_distance]
    exact = [*([] if first else phi), *unit, *([] if first else mu_j)]
    expected = [*(value.grad for value in exact), distance.detach()]
    torch.testing.assert_close([one.value for one in found], expected)
    return counted + 2 * parts * SPLINE


def test_messages_are_what_a_scalar_program_counts():
    Number.count = 0
    total([Number(1.0) * Number(1.0) for _ in range(6)])
    assert Number.count == SPLINE
    for channels in (16, 128):
        assert work(channels, 1, 0, 7).edge_flop == 7 * channels * one_edge(first=True)
        more = work(channels, 3, 0, 7).edge_flop - work(channels, 2, 0, 7).edge_flop
        assert more == 7 * channels * one_edge(first=False)


def test_work_of_a_thousand_atoms():
    """By hand: 1.869 MFLOP of maps and 1.577 MFLOP of 40 edges an atom."""
    count = work(128, 3, 1000, 40_000)
    assert count.gflop == pytest.approx(1.869 + 1.577, rel=1e-3)
    assert count.gflop / count.flop_per_byte == pytest.approx(1e-9 * count.traffic_bytes)
    assert work(128, 3, 2000, 80_000).gflop == pytest.approx(2.0 * count.gflop)


# --- Structures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "neighbours"), [(2, 1), (22, 15), (76, 15), (77, 40), (100, 40), (1000, 40)]
)
def test_thermal_structures_have_the_neighbours_they_promise(count: int, neighbours: int):
    atoms = thermal_structure(count, ELEMENTS, CUTOFF)
    assert len(atoms) == count
    assert atoms.pbc.all() == (count > 76)
    assert atoms == thermal_structure(count, ELEMENTS, CUTOFF)
    edges = len(neighbor_list("i", atoms, CUTOFF))
    assert edges / count == pytest.approx(neighbours, abs=0.1 if count > 2 else 0.0)
    assert pdist(atoms.positions).min() > 0.5
    if atoms.pbc.all():
        assert atoms.cell.lengths().min() >= 1.9 * CUTOFF


def test_thermal_structures_scale_with_the_cutoff_and_take_known_elements():
    near, far = (thermal_structure(100, ["P", "S"], cutoff) for cutoff in (4.0, 6.0))
    np.testing.assert_allclose(far.positions, 1.5 * near.positions)
    assert set(far.symbols) == {"P", "S"}


# --- Timing and memory ---------------------------------------------------------------------------


def test_calls_take_turns():
    order: list[str] = []

    def call(name: str, seconds: float) -> Callable[[], None]:
        def wait() -> None:
            order.append(name)
            time.sleep(seconds)

        return wait

    times = in_turns({"short": call("short", 0.004), "long": call("long", 0.25)}, 0.0)
    assert order.count("long") == len(times["long"].seconds) == 3
    # The first of each of the three turns is left out.
    assert order.count("short") == len(times["short"].seconds) + 3
    assert order.index("long") < len(order) - 1 - order[::-1].index("short")
    assert 4.0 <= times["short"].ms < 40.0
    assert times["long"].ms >= 250.0
    assert times["long"].cores < 0.5  # asleep
    assert times["long"].ms_iqr >= 0.0


@needs_native
def test_memory_of_the_native_kernels_grows_as_atoms():
    one, two = (peak_memory("ultra_tiny", "native", atoms) for atoms in (2000, 4000))
    assert two == pytest.approx(2.0 * one, rel=0.25)
    assert 4000 < one / 2000 < 40_000  # features alone are 8 rows of 32 floats a layer


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
def test_a_killed_run_has_written_what_it_measured(killed: Path):
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
    # Ten times at least on a quiet machine.
    assert native["ratio_to_portable"] > 1.5
    assert native["sgemm_gflop_per_s"] == portable["sgemm_gflop_per_s"] > 0.0


@needs_native
def test_a_killed_run_goes_on(output: Path):
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
def test_threads_are_those_asked_for(output: Path, monkeypatch: pytest.MonkeyPatch):
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
    many = [one for one in records if one["threads"] == cores > 1]
    assert all(one["speedup_by_threads"] > 0.0 for one in many)


@needs_native
def test_what_does_not_fit_is_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "available_memory", lambda: 10**7)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ()}, "no models to measure"),
        ({"atoms": (22, 0)}, "atoms must be 2 or more, got 0"),
        ({"threads": (0,)}, "threads must be 1 to .* got 0"),
        ({"threads": (10_000,)}, "threads must be 1 to .* got 10000"),
        ({"seconds": 0.0}, "seconds must be positive"),
    ],
)
def test_settings_that_cannot_be_measured(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        BenchmarkSettings(**({"models": ("tiny",)} | options))


def test_models_by_name():
    assert models_of("all") == tuple(available_models())
    assert models_of("tiny, original") == ("tiny", "original")


def test_unknown_model(tmp_path: Path):
    with pytest.raises(ArchiveError, match="no model 'huge'"):
        benchmark_kernels(BenchmarkSettings(("tiny", "huge")), tmp_path / "k.json")
    assert not list(tmp_path.iterdir())


def test_output_that_cannot_be_written(tmp_path: Path):
    with pytest.raises(InputError, match="no folder"):
        benchmark_kernels(SETTINGS, tmp_path / "none" / "k.json")


@needs_native
def test_float64_is_refused(tiny_archive64: Path):
    with pytest.raises(MissingDependencyError, match="the archive in float64"):
        benchmark_kernels(BenchmarkSettings(("ultra_tiny", str(tiny_archive64))))


@needs_native
def test_output_of_another_benchmark(output: Path):
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
    with pytest.raises(InputError, match="those of benchmark lammps are needed"):
        read_records(output, "benchmark lammps")
    output.write_text("[]")
    with pytest.raises(InputError, match="is no file of benchmark kernels"):
        read_records(output, "benchmark kernels")


BATCH = BatchSettings(("ultra_tiny",), "O", structures=3, backends=("portable",), seconds=0.01)


def test_killed_batch_benchmark_resumes(tmp_path: Path):
    """The three kinds of structures have a record each, and those in the file are kept."""

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


def records_of(model: str, times: dict[int, float]) -> Iterator[dict[str, Any]]:
    for atoms, ms in times.items():
        yield {
            "measurement": "kernels",
            "backend": "native",
            "model": model,
            "atoms": atoms,
            "threads": 1,
            "ms": ms,
            "sgemm_fraction": 0.38,
            "ratio_to_portable": 12.0,
            "peak_memory_kb_per_atom": 30.0,
        }


def test_targets_beside_what_was_measured():
    targets = load_targets()
    outcomes = judge_targets(list(records_of("original", {22: 1.0, 1000: 50.0})), targets)
    found = {(one.check.key, one.atoms): one.verdict for one in outcomes}
    assert found == {
        ("ratio_to_portable", "22"): "met",
        ("ratio_to_portable", "1000"): "met",
        ("sgemm_fraction", "1000"): "missed by 5%",
        ("peak_memory_kb_per_atom", "1000"): "met",
    }


@pytest.mark.parametrize(("power", "verdict"), [(1.0, "met"), (1.26, "missed by 20%")])
def test_time_by_atoms(power: float, verdict: str):
    times = {atoms: 1e-2 * atoms**power for atoms in (100, 1000, 10_000, 100_000)}
    outcomes = judge_targets(list(records_of("mine.pt", times)), load_targets())
    (one,) = (one for one in outcomes if one.check.key == "exponent")
    assert one.atoms == "1000 to 100000"
    assert one.check.figure.value == pytest.approx(power)
    assert one.verdict == verdict


@needs_native
def test_tables(output: Path):
    records = json.loads(output.read_text())["results"]
    assert records_table(records).row_count == 1
    assert targets_table(judge_targets(records, load_targets())).row_count == 1
    busy = [record | {"cores_used": 0.4} for record in records]
    assert list(remarks(busy))[-1].startswith("Other programs took up to 60% of a core")
