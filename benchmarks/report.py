"""Compare all students with their teacher in one HTML page: speed, accuracy, memory.

Positions move before each call, so that no result comes from a cache.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jinja2
import numpy as np
import typer
from ase import Atoms
from ase.calculators.calculator import Calculator

from mlff_student.archive.archive import Archive
from mlff_student.archive.backends import evaluator
from mlff_student.archive.registry import archive_of
from mlff_student.benchmark import MOLECULE
from mlff_student.benchmark.measure import software
from mlff_student.benchmark.memory import peak_memory, peak_memory_of_teacher
from mlff_student.benchmark.records import Progress, Record, RecordFile, no_progress
from mlff_student.benchmark.settings import (
    check_atoms,
    check_models,
    check_positive,
    models_of,
    words_of,
)
from mlff_student.benchmark.structures import archive_arguments, thermal_structure
from mlff_student.benchmark.timing import in_turns
from mlff_student.cli import run
from mlff_student.cli.benchmark import progress_bar
from mlff_student.cli.common import whole_numbers
from mlff_student.core.errors import InputError, MissingDependencyError, StudentError
from mlff_student.core.files import atomic_write
from mlff_student.core.paths import PACKAGE
from mlff_student.core.results import machine_facts
from mlff_student.core.version import __version__
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.protocol import MDSettings
from mlff_student.engines.run import run_md
from mlff_student.reporting.plots import COLOURS, Plot, logarithmic, svg_figure
from mlff_student.structures.reading import read_structure
from mlff_student.teachers.registry import is_teacher, make_teacher

COMMAND = "benchmarks/report.py"
HERE = Path(__file__).parent
GAP = 3.0  # angstrom, between copies of a molecule
SMALL_MOVE, BEYOND_SKIN = 0.01, 1.0  # angstrom: moves that keep a neighbour list, or need a new one
PLACES = 16  # number of displaced copies that calls take in turn
FEWEST_FOR_EXPONENT = 100  # atoms; below, the time of a call does not depend on the atoms
MEMORY_ATOMS = 1000  # number of atoms for the memory of a student
TEACHER_STEPS = 10  # number of MD steps of a teacher
LONGEST_CALL = 60.0  # s; a teacher does not compute a structure that would take longer
TEACHERS_EXPONENT = 3.0  # predicts that time as atoms^3, as for dense linear algebra


@dataclass(frozen=True)
class ReportSettings:
    """Settings of the comparison.

    Attributes
    ----------
    models : tuple[str, ...]
        Names of shipped students, or paths.
    teacher : str
        Name of the teacher; empty for none.
    molecule : str
        Structure file or SMILES string.
    atoms : tuple[int, ...]
        Numbers of atoms of thermal structures, for the dependence on size.
    batches : tuple[int, ...]
        Numbers of displaced copies of the molecule in one call.
    engines : tuple[str, ...]
        MD engines.
    steps : int
        Number of MD steps that are timed with each engine.
    seconds : float
        Least time of the calls for each structure, s.
    """

    models: tuple[str, ...]
    teacher: str = "gfn2-xtb"
    molecule: str = MOLECULE
    atoms: tuple[int, ...] = (22, 100, 300, 1000, 3000)
    batches: tuple[int, ...] = (1, 8, 64)
    engines: tuple[str, ...] = ("openmm", "lammps")
    steps: int = 2000
    seconds: float = 5.0

    def __post_init__(self) -> None:
        check_models(self.models)
        check_atoms(self.atoms)
        if self.batches and min(self.batches) < 1:
            raise InputError(f"batches must be 1 or more, got {min(self.batches)}")
        for name in ("steps", "seconds"):
            check_positive(name, getattr(self, name))


class ReportJob(NamedTuple):
    """A measurement, known by its name."""

    job: str

    def __str__(self) -> str:
        return self.job


def main(
    models: Annotated[
        str,
        typer.Option(help="Shipped names or paths, separated by commas; all: every shipped model."),
    ] = "all",
    teacher: Annotated[
        str, typer.Option(help="Teacher to compare with; empty for none.")
    ] = "gfn2-xtb",
    molecule: Annotated[
        str, typer.Option(help="Structure file or SMILES string of a molecule.")
    ] = MOLECULE,
    atoms: Annotated[
        str, typer.Option(help="Numbers of atoms of random structures, separated by commas.")
    ] = "22,100,300,1000,3000",
    batches: Annotated[
        str, typer.Option(help="Numbers of structures of a batch, separated by commas.")
    ] = "1,8,64",
    engines: Annotated[
        str, typer.Option(help="MD engines, separated by commas: openmm, lammps, ase.")
    ] = "openmm,lammps",
    steps: Annotated[int, typer.Option(help="Number of MD steps that are timed.")] = 2000,
    seconds: Annotated[
        float, typer.Option(help="Least time of the calls for each structure, s.")
    ] = 5.0,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for benchmark.html and benchmark.json.")
    ] = Path("benchmark"),
) -> None:
    """Compare all students with their teacher in one HTML page: speed, accuracy and memory.

    The same command resumes after a kill. Measure on a machine that does nothing else.

    Example: python benchmarks/report.py --models tiny,ultra_tiny -o benchmark
    """
    settings = ReportSettings(
        models=models_of(models),
        teacher=teacher,
        molecule=molecule,
        atoms=whole_numbers("--atoms", atoms),
        batches=whole_numbers("--batches", batches),
        engines=words_of(engines),
        steps=steps,
        seconds=seconds,
    )
    with progress_bar("report", quiet=False) as progress:
        benchmark_report(settings, output, progress)
    print(f"written: {output / 'benchmark.html'}")


def benchmark_report(
    settings: ReportSettings, output: Path, progress: Progress = no_progress
) -> list[Record]:
    """Measure all students, and write benchmark.html and benchmark.json into a folder.

    Parameters
    ----------
    settings : ReportSettings
        What to measure.
    output : Path
        Folder.
    progress : callable
        Called with the name of the job, the number of jobs done and the number of jobs.

    Returns
    -------
    list of dict
        Flat records; `measurement` is single, batch, md, scaling, memory or stages.

    Raises
    ------
    InputError
        The folder cannot be written to, or holds another benchmark.
    ArchiveError
        There is no such model.
    MissingDependencyError
        The teacher is not installed.
    """
    archives = {model: archive_of(model) for model in settings.models}
    molecule = read_structure(settings.molecule).atoms
    if settings.teacher:
        make_teacher(settings.teacher)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {output}: {error.strerror}") from error
    file = RecordFile(output / "benchmark.json", COMMAND, settings, software())
    measurements = dict(_measurements(settings, archives, molecule))

    def measured(job: ReportJob) -> list[Record]:
        return [job._asdict() | record for record in measurements[job.job]()]

    records = file.measure(map(ReportJob, measurements), measured, progress)
    with atomic_write(output / "benchmark.html") as temporary:
        temporary.write_text(page(records, archives, settings))
    return records


def _measurements(
    settings: ReportSettings, archives: dict[str, Archive], molecule: Atoms
) -> Iterator[tuple[str, Callable[[], list[Record]]]]:
    potentials = [*settings.models, *([settings.teacher] if settings.teacher else [])]
    yield "latency of one molecule", lambda: _single(potentials, molecule, settings.seconds)
    for model in potentials:
        yield f"{model}: batches", lambda model=model: _batches(model, molecule, settings)
    for size in settings.atoms:
        yield f"{size} atoms", lambda size=size: _scaling(archives, size, settings.seconds)
    if teacher := settings.teacher:
        yield f"{teacher}: sizes", lambda: _teachers_scaling(teacher, molecule, settings)
    for model in potentials:
        for engine in ("ase",) if is_teacher(model) else settings.engines:
            yield (
                f"{model}: MD in {engine}",
                lambda model=model, engine=engine: _md(model, engine, molecule, settings),
            )
    for model in settings.models:
        yield f"{model}: memory", lambda model=model: _memory(model)
        yield (
            f"{model}: stages",
            lambda model=model: _stages(archives[model], model, molecule, settings.seconds),
        )


def side_by_side(molecule: Atoms, copies: int) -> Atoms:
    """Place copies of a molecule on a lattice, `GAP` apart, without a cell."""
    edge = int(np.ceil(round(copies ** (1 / 3), 9)))
    extent = np.ptp(molecule.positions, axis=0) + GAP
    boxed = Atoms(molecule.numbers, positions=molecule.positions, cell=extent)
    cluster = boxed.repeat(edge)[: copies * len(molecule)]
    cluster.cell = None
    return cluster


def displaced(atoms: Atoms, width: float, count: int = PLACES) -> list[Atoms]:
    """Make copies with normal displacements of standard deviation `width`, angstrom."""
    rng = np.random.default_rng(1)
    copies = [atoms.copy() for _ in range(count)]
    for copy in copies:
        copy.positions += width * rng.normal(size=copy.positions.shape)
    return copies


def moving(function: Callable[[Any], object], places: list[Any]) -> Callable[[], object]:
    """Return a call without arguments that passes the next place to the function each time."""
    turn = cycle(places)
    return lambda: function(next(turn))


def _calculator(model: str) -> Calculator:
    return make_teacher(model) if is_teacher(model) else StudentForceFieldCalculator(model=model)


def _forces_at(calculator: Calculator, atoms: Atoms) -> Callable[[np.ndarray], np.ndarray]:
    atoms = atoms.copy()
    atoms.calc = calculator

    def forces(positions: np.ndarray) -> np.ndarray:
        atoms.positions = positions
        return atoms.get_forces()

    return forces


def _single(potentials: list[str], molecule: Atoms, seconds: float) -> list[Record]:
    """Time energy and forces of one molecule through the ASE calculator."""
    places = [copy.positions for copy in displaced(molecule, SMALL_MOVE)]
    calls = {
        model: moving(_forces_at(_calculator(model), molecule), places) for model in potentials
    }
    for call in calls.values():
        for _ in range(2):  # TorchScript compiles in the second call
            call()
    times = in_turns(calls, seconds)
    return [
        {
            "measurement": "single",
            "model": model,
            "atoms": len(molecule),
            "ms": times[model].ms,
            "ms_iqr": times[model].ms_iqr,
        }
        for model in potentials
    ]


def _batches(model: str, molecule: Atoms, settings: ReportSettings) -> list[Record]:
    """Time several structures in one call, and one by one."""
    calculator = _calculator(model)
    batched = getattr(calculator, "calculate_batch", None)
    forces = _forces_at(calculator, molecule)

    def one_by_one(batch: list[Atoms]) -> None:
        for atoms in batch:
            forces(atoms.positions)

    calls = {}
    for size in settings.batches:
        copies = displaced(molecule, SMALL_MOVE, 2 * size)  # the two halves take turns
        places = [copies[:size], copies[size:]]
        calls[size, "one by one"] = moving(one_by_one, places)
        if batched:
            calls[size, "batch"] = moving(batched, places)
    for call in calls.values():
        call()
    times = in_turns({str(key): call for key, call in calls.items()}, settings.seconds)
    return [
        {
            "measurement": "batch",
            "model": model,
            "atoms": len(molecule),
            "structures": size,
            "how": how,
            "ms_per_structure": times[str((size, how))].ms / size,
        }
        for size, how in calls
    ]


def _scaling(archives: dict[str, Archive], size: int, seconds: float) -> list[Record]:
    """Time energy and forces by size.

    `ms` is the time with an earlier neighbour list, as in most MD steps, and `ms_with_search` the
    time with a new one.
    """
    calls, searches = {}, {}
    for model, archive in archives.items():
        atoms = thermal_structure(size, archive.metadata["elements"], archive.metadata["cutoff"])
        student = evaluator(archive, "auto")
        places = [archive_arguments(copy) for copy in displaced(atoms, SMALL_MOVE, 4)]
        calls[model] = moving(lambda place, student=student: student.evaluate(*place), places)
        calls[model]()
        positions, *rest = places[0]
        apart = [(positions + BEYOND_SKIN, *rest), places[0]]
        searches[model] = lambda apart=apart, student=student: [student.evaluate(*p) for p in apart]
    times = in_turns(calls, seconds)
    searching = in_turns(searches, 0.0)
    return [
        {
            "measurement": "scaling",
            "model": model,
            "atoms": size,
            "ms": times[model].ms,
            "ms_with_search": 0.5 * searching[model].ms,
            "us_per_atom": 1e3 * times[model].ms / size,
        }
        for model in archives
    ]


def _teachers_scaling(teacher: str, molecule: Atoms, settings: ReportSettings) -> list[Record]:
    """Measure time and memory of a teacher by size, up to calls of `LONGEST_CALL`.

    The structures are copies of the molecule side by side. In thermal structures, which are not
    molecules, a self-consistent field may not converge.
    """
    calculator = make_teacher(teacher)
    records: list[Record] = []
    for copies in sorted({ceil(size / len(molecule)) for size in settings.atoms}):
        atoms = side_by_side(molecule, copies)
        if records:
            growth = (len(atoms) / records[-1]["atoms"]) ** TEACHERS_EXPONENT
            if 1e-3 * records[-1]["ms"] * growth > LONGEST_CALL:
                break
        places = [copy.positions for copy in displaced(atoms, SMALL_MOVE, 4)]
        call = moving(_forces_at(calculator, atoms), places)
        call()
        ms = in_turns({teacher: call}, settings.seconds)[teacher].ms
        records.append(
            {
                "measurement": "scaling",
                "model": teacher,
                "atoms": len(atoms),
                "ms": ms,
                "us_per_atom": 1e3 * ms / len(atoms),
            }
        )
    record: Record = {"measurement": "memory", "model": teacher, "atoms": records[-1]["atoms"]}
    largest = side_by_side(molecule, records[-1]["atoms"] // len(molecule))
    return [*records, record | _peak(lambda: peak_memory_of_teacher(teacher, molecule, largest))]


def _md(model: str, engine: str, molecule: Atoms, settings: ReportSettings) -> list[Record]:
    """Time steps of MD."""
    steps = TEACHER_STEPS if is_teacher(model) else settings.steps
    md = MDSettings(
        engine=engine,
        model=model,
        structure=settings.molecule,
        steps=steps,
        timestep_fs=0.5,
        temperature_K=300.0,
        ensemble="nve",
        every=max(1, steps // 10),
        thermalise_steps=max(2, steps // 10),
        friction_per_ps=10.0,
        seed=1,
        threads=1,
    )  # fmt: skip
    record: Record = {"measurement": "md", "model": model, "engine": engine, "atoms": len(molecule)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            run_record = run_md(md, Path(folder) / "run", quiet=True)
        except MissingDependencyError as error:
            return [record | {"ms_per_step": None, "ns_per_day": None, "note": str(error)}]
    figures = {key: run_record[key] for key in ("ms_per_step", "ns_per_day", "timestep_fs")}
    return [record | figures | {"note": ""}]


def _memory(model: str) -> list[Record]:
    record: Record = {"measurement": "memory", "model": model, "atoms": MEMORY_ATOMS}
    return [record | _peak(lambda: peak_memory(model, "auto", MEMORY_ATOMS))]


def _peak(measure: Callable[[], int]) -> Record:
    try:
        return {"peak_memory_mb": 1e-6 * measure(), "note": ""}
    except StudentError as error:
        return {"peak_memory_mb": None, "note": str(error)}


def _stages(archive: Archive, model: str, molecule: Atoms, seconds: float) -> list[Record]:
    """Measure the parts of the time of a call: network, neighbour search, and ASE."""
    student = evaluator(archive, "auto")
    copies = displaced(molecule, SMALL_MOVE)
    near = [archive_arguments(copy) for copy in copies]
    for number, copy in enumerate(copies):
        copy.positions += (number % 2) * BEYOND_SKIN  # all atoms move: equal edges, but a new list
    far = [archive_arguments(copy) for copy in copies]
    calls = {
        "network": moving(lambda place: student.evaluate(*place), near),
        "with_search": moving(lambda place: student.evaluate(*place), far),
        "ase": moving(
            _forces_at(StudentForceFieldCalculator(model=model), molecule),
            [copy.positions for copy in displaced(molecule, SMALL_MOVE)],
        ),
    }
    for call in calls.values():
        for _ in range(2):
            call()
    times = in_turns(calls, seconds)
    network = times["network"].ms
    stages = {
        "network": network,
        "neighbour search, when due": max(0.0, times["with_search"].ms - network),
        "ASE around it": max(0.0, times["ase"].ms - network),
    }
    return [
        {"measurement": "stages", "model": model, "atoms": len(molecule), "stage": stage, "ms": ms}
        for stage, ms in stages.items()
    ]


def scaling_exponent(records: list[Record], model: str) -> float:
    """Fit time ~ atoms^exponent from 100 atoms on; NaN if there are fewer than two sizes."""
    points = {
        row["atoms"]: row["ms"]
        for row in records
        if row["measurement"] == "scaling" and row["model"] == model
        if row["atoms"] >= FEWEST_FOR_EXPONENT
    }
    if len(points) < 2:
        return np.nan
    slope, _ = np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)
    return float(slope)


def page(records: list[Record], archives: dict[str, Archive], settings: ReportSettings) -> str:
    """Return the comparison as one self-contained HTML page."""
    models = [*archives, *([settings.teacher] if settings.teacher else [])]
    accuracy = {model: _force_rmse(archive) for model, archive in archives.items()}
    plots = [
        _speed_against_accuracy(records, accuracy, settings.teacher),
        _scaling_plot(records, models),
        _batch_plot(records, models),
        _stage_plot(records, list(archives)),
    ]
    rows = []
    for model in models:
        of_model = [row for row in records if row["model"] == model]
        rows.append(
            {
                "model": model,
                "rmse": accuracy.get(model),
                "single": _value(of_model, "ms", measurement="single"),
                "batch": min(
                    (row["ms_per_structure"] for row in of_model if row["measurement"] == "batch"),
                    default=None,
                ),
                "md": {
                    engine: (
                        _value(of_model, "ms_per_step", measurement="md", engine=engine),
                        _value(of_model, "ns_per_day", measurement="md", engine=engine),
                    )
                    for engine in (*settings.engines, "ase")
                },
                "exponent": scaling_exponent(records, model),
                "memory": _value(of_model, "peak_memory_mb", measurement="memory"),
                "memory_atoms": _value(of_model, "atoms", measurement="memory"),
            }
        )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([HERE, PACKAGE / "reporting"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        rows=rows,
        engines=[*settings.engines, "ase"],
        plots=[plot for plot in plots if plot],
        notes=list(dict.fromkeys(row["note"] for row in records if row.get("note"))),
        settings=settings,
        molecule_atoms=next((r["atoms"] for r in records if r["measurement"] == "single"), 0),
        machine=machine_facts(),
        version=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def _force_rmse(archive: Archive) -> float | None:
    accuracy = archive.metadata.get("accuracy") or {}
    accuracy = accuracy.get("held_out_molecules", accuracy)
    return accuracy.get("force_rmse_ev_per_angstrom")


def _value(records: list[Record], key: str, **wanted: Any) -> float | None:
    for row in records:
        if all(row.get(name) == value for name, value in wanted.items()):
            return row[key]
    return None


def _speed_against_accuracy(
    records: list[Record], accuracy: dict[str, float | None], teacher: str
) -> Plot | None:
    steps = [row for row in records if row["measurement"] == "md" and row["ms_per_step"]]
    sink: list[str] = []
    with svg_figure(
        "time of an MD step (ms)", "force RMSE on held-out molecules (eV/Å)", sink
    ) as axes:
        for row in steps:
            if accuracy.get(row["model"]) is None:
                continue
            colour = COLOURS[list(accuracy).index(row["model"]) % len(COLOURS)]
            marker = {"openmm": "o", "lammps": "s", "ase": "D"}[row["engine"]]
            label = f"{Path(row['model']).stem}, {row['engine']}"
            axes.plot(row["ms_per_step"], accuracy[row["model"]], marker, color=colour, label=label)
        for row in steps:
            if row["model"] == teacher:
                axes.axvline(row["ms_per_step"], color="0.4", linestyle="--", label=teacher)
        logarithmic(axes, "x")
        axes.set_ylim(0.0, 1.2 * max(filter(None, accuracy.values()), default=1.0))
    caption = "Faster models are on the left, more accurate ones are lower. Dashed: the teacher."
    return Plot("Speed and accuracy", caption, sink[0])


def _scaling_plot(records: list[Record], models: list[str]) -> Plot | None:
    sink: list[str] = []
    with svg_figure("number of atoms", "time of energy and forces (ms)", sink) as axes:
        for model, colour in zip(models, COLOURS, strict=False):
            exponent = f"exponent {scaling_exponent(records, model):.2f}"
            for key, line, what in (
                ("ms", "-", exponent),
                ("ms_with_search", ":", "with neighbour search"),
            ):
                points = sorted(
                    (row["atoms"], row[key])
                    for row in records
                    if row["measurement"] == "scaling" and row["model"] == model and key in row
                )
                if points:
                    label = f"{Path(model).stem}: {what}"
                    axes.plot(
                        *zip(*points, strict=True), line, marker="o", color=colour, label=label
                    )
        logarithmic(axes, "x")
        logarithmic(axes, "y")
    caption = (
        "Random thermal structures, one thread; the teacher computes copies of the molecule. The "
        f"exponents are for {FEWEST_FOR_EXPONENT} atoms or more. Most steps of MD use an earlier "
        "neighbour list."
    )
    return Plot("Time and size", caption, sink[0])


def _batch_plot(records: list[Record], models: list[str]) -> Plot | None:
    sink: list[str] = []
    with svg_figure("number of structures in a call", "time per structure (ms)", sink) as axes:
        for model, colour in zip(models, COLOURS, strict=False):
            for how, line in (("batch", "-"), ("one by one", ":")):
                points = sorted(
                    (row["structures"], row["ms_per_structure"])
                    for row in records
                    if row["measurement"] == "batch" and (row["model"], row["how"]) == (model, how)
                )
                if points:
                    label = f"{Path(model).stem}, {how}"
                    axes.plot(
                        *zip(*points, strict=True), line, marker="o", color=colour, label=label
                    )
        logarithmic(axes, "x")
        logarithmic(axes, "y")
    return Plot("Many structures in one call", "Calls of the ASE calculator.", sink[0])


def _stage_plot(records: list[Record], models: list[str]) -> Plot | None:
    stages = [row for row in records if row["measurement"] == "stages"]
    names = list(dict.fromkeys(row["stage"] for row in stages))
    sink: list[str] = []
    with svg_figure("time (ms)", "", sink) as axes:
        left = np.zeros(len(models))
        for name, colour in zip(names, COLOURS, strict=False):
            width = np.array([_value(stages, "ms", model=m, stage=name) or 0.0 for m in models])
            axes.barh([Path(m).stem for m in models], width, left=left, color=colour, label=name)
            left += width
        axes.invert_yaxis()
    return Plot("Parts of the time of a call", "Energy and forces of one molecule.", sink[0])


if __name__ == "__main__":
    run(lambda: typer.run(main))
