"""What the benchmarks count, how they time calls, and how they judge targets."""

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

from mlff_student.archive.registry import available_models
from mlff_student.benchmark.arithmetic import SPLINE, work
from mlff_student.benchmark.kernels import BenchmarkSettings, benchmark_kernels
from mlff_student.benchmark.settings import models_of
from mlff_student.benchmark.structures import thermal_structure
from mlff_student.benchmark.targets import judge_targets, load_targets
from mlff_student.benchmark.timing import in_turns
from mlff_student.core.errors import ArchiveError, InputError
from mlff_student.model.student import PRESETS, Student

ELEMENTS = ["H", "C", "N", "O", "F"]
CUTOFF = 5.0


# --- Arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_operations_of_linear_maps_are_those_that_torch_counts(preset: str):
    """Without edges, a student computes only the linear maps of its atoms."""
    config, atoms = PRESETS[preset], 10
    student = Student(config).requires_grad_(False)
    none = torch.zeros(0, 3), torch.zeros(2, 0, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        student.network(*none, torch.zeros(atoms, dtype=torch.int64), atoms)
    count = work(config.channels, config.layers, atoms, 0)
    assert count.map_flop == counter.get_total_flops()
    assert count.edge_flop == 0


class Number:
    """A scalar that counts the additions and multiplications with it."""

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
    """Count the operations of one edge and channel, and compare the results with autograd.

    w and dw are the value and the slope of a filter, and x = phi w is the message of a part. The
    sums over edges start from zero here.
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


def test_operations_of_messages_are_those_of_a_scalar_program():
    Number.count = 0
    total([Number(1.0) * Number(1.0) for _ in range(6)])
    assert Number.count == SPLINE
    for channels in (16, 128):
        assert work(channels, 1, 0, 7).edge_flop == 7 * channels * one_edge(first=True)
        more = work(channels, 3, 0, 7).edge_flop - work(channels, 2, 0, 7).edge_flop
        assert more == 7 * channels * one_edge(first=False)


def test_work_of_a_thousand_atoms():
    """Counted by hand: 1.869 MFLOP of maps and 1.577 MFLOP of 40 edges for each atom."""
    count = work(128, 3, 1000, 40_000)
    assert count.gflop == pytest.approx(1.869 + 1.577, rel=1e-3)
    assert count.gflop / count.flop_per_byte == pytest.approx(1e-9 * count.traffic_bytes)
    assert work(128, 3, 2000, 80_000).gflop == pytest.approx(2.0 * count.gflop)


# --- Structures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "neighbours"), [(2, 1), (22, 15), (76, 15), (77, 40), (100, 40), (1000, 40)]
)
def test_thermal_structures_have_the_documented_neighbours(count: int, neighbours: int):
    atoms = thermal_structure(count, ELEMENTS, CUTOFF)
    assert len(atoms) == count
    assert atoms.pbc.all() == (count > 76)
    assert atoms == thermal_structure(count, ELEMENTS, CUTOFF)
    edges = len(neighbor_list("i", atoms, CUTOFF))
    assert edges / count == pytest.approx(neighbours, abs=0.1 if count > 2 else 0.0)
    assert pdist(atoms.positions).min() > 0.5
    if atoms.pbc.all():
        assert atoms.cell.lengths().min() >= 1.9 * CUTOFF


def test_thermal_structures_scale_with_the_cutoff_and_use_known_elements():
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
    # The first call of each of the three turns is left out.
    assert order.count("short") == len(times["short"].seconds) + 3
    assert order.index("long") < len(order) - 1 - order[::-1].index("short")
    assert times["short"].ms >= 4.0
    assert times["long"].ms >= 250.0
    assert times["long"].cores < 0.5  # asleep
    assert times["long"].ms_iqr >= 0.0


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
def test_settings_that_cannot_be_measured_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        BenchmarkSettings(**({"models": ("tiny",)} | options))


def test_models_are_read_by_name():
    assert models_of("all") == tuple(available_models())
    assert models_of("tiny, original") == ("tiny", "original")


def test_unknown_model_is_refused(tmp_path: Path):
    with pytest.raises(ArchiveError, match="no model 'huge'"):
        benchmark_kernels(BenchmarkSettings(("tiny", "huge")), tmp_path / "k.json")
    assert not list(tmp_path.iterdir())


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


def test_records_are_judged_by_the_targets():
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
def test_exponent_of_time_is_judged(power: float, verdict: str):
    times = {atoms: 1e-2 * atoms**power for atoms in (100, 1000, 10_000, 100_000)}
    outcomes = judge_targets(list(records_of("mine.pt", times)), load_targets())
    (one,) = (one for one in outcomes if one.check.key == "exponent")
    assert one.atoms == "1000 to 100000"
    assert one.check.figure.value == pytest.approx(power)
    assert one.verdict == verdict
