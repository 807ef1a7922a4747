"""A protocol as tasks: runs, and comparisons of finished runs, each with one result."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlff_student.analysis.bonds import bond_pairs
from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write
from mlff_student.distill.molecules import LIBRARY, read_library
from mlff_student.engines.protocol import MDSettings
from mlff_student.structures.checks import connected_fragments
from mlff_student.structures.packing import LIQUID_PACKING, liquid_box, molecular_volume
from mlff_student.structures.reading import Structure, make_topology, read_structure, write_topology
from mlff_student.structures.smiles import embed
from mlff_student.validation.protocol import CONVERGENCE_PS, Liquid, Protocol, Runs

FRICTION_PER_PS = 10.0  # of Langevin dynamics: heat comes in within some tenths of a picosecond
Sizes = dict[str, dict[str, int]]  # atoms and molecules of each structure


@dataclass(frozen=True)
class RunTask:
    """A run and what is measured of it.

    Attributes
    ----------
    name : MODEL/ENGINE/STEP/CASE, the folder of the run and the file of its result.
    step : of the protocol.
    structure : its short name.
    settings : of the run.
    judged : whether the verdict counts it.
    teacher : whose forces are compared on `teacher_frames` frames; empty for none.
    atoms, molecules : of the structure.
    """

    name: str
    step: str
    structure: str
    settings: MDSettings
    judged: bool = True
    teacher: str = ""
    teacher_frames: int = 0
    needs: tuple[str, ...] = ()
    atoms: int = 0
    molecules: int = 1

    def identity(self) -> dict[str, Any]:
        """What the run is, whatever becomes of it: keys of its record. A length that was reached
        is the analysis's to say.
        """
        return {
            "kind": "run",
            "ensemble": self.settings.ensemble,
            "atoms": self.atoms,
            "molecules": self.molecules,
            "target_temperature_k": self.settings.temperature_K,
            "timestep_fs": self.settings.timestep_fs,
            "duration_ps": 1e-3 * self.settings.steps * self.settings.timestep_fs,
        }


@dataclass(frozen=True)
class CompareTask:
    """What is measured of several runs together.

    Attributes
    ----------
    name, step, structure, judged : as of `RunTask`.
    kind : "convergence" of the energy with the timestep, "rdf" or "spectrum" against the teacher.
    needs : names of the runs.
    references : names of the teacher's runs.
    burn_in_ps, window_ps : what is left out of each run, and how much counts from there.
    timesteps_fs : of each run.
    atoms, molecules : of the structure.
    """

    name: str
    step: str
    structure: str
    kind: str
    needs: tuple[str, ...]
    references: tuple[str, ...] = ()
    burn_in_ps: float = 0.0
    window_ps: float = float("inf")
    timesteps_fs: tuple[float, ...] = ()
    judged: bool = True
    atoms: int = 0
    molecules: int = 1

    def identity(self) -> dict[str, Any]:
        """What is compared: keys of the record."""
        return {"kind": self.kind, "atoms": self.atoms, "molecules": self.molecules}


Task = RunTask | CompareTask


@dataclass(frozen=True)
class Subject:
    """Who is tested, and against whom.

    Attributes
    ----------
    models : shipped names, checkpoints, archives; teachers' names with the engine "ase".
    engines : of MD.
    teacher : name that `mlff_student.teachers.registry.make_teacher` takes, or empty.
    """

    models: tuple[str, ...]
    engines: tuple[str, ...]
    teacher: str = ""


def prepare_structures(protocol: Protocol, folder: Path) -> dict[str, str]:
    """What `read_structure` takes for each structure of a protocol, by its name there.

    Boxes are written into the folder, once.

    Raises
    ------
    InputError : a structure that is no box, no molecule of the library, no file and no SMILES.
    """
    library = {molecule.name: molecule.smiles for molecule in read_library(LIBRARY)}
    folder.mkdir(parents=True, exist_ok=True)
    names = [
        name
        for step in protocol.steps
        for name in (step.structures if isinstance(step, Runs) else (step.box,))
    ]
    sources = {}
    for name in dict.fromkeys(names):
        if name in protocol.boxes:
            path = folder / f"{name}.pdb"
            if not path.exists():
                write_box(protocol.boxes[name].smiles, protocol.boxes[name].count, path)
            sources[name] = str(path)
        else:
            sources[name] = library.get(name, name)
            read_structure(sources[name])  # raises here where it cannot be had
    return sources


def write_box(smiles: str, count: int, path: Path, seed: int = 1) -> None:
    """PDB file of `count` molecules packed at random into a periodic box of a liquid's density."""
    molecule, bonds = embed(smiles)
    volume = count * molecular_volume(smiles) / LIQUID_PACKING
    atoms = liquid_box([molecule] * count, volume, np.random.default_rng(seed))
    bonds = [(i + k * len(molecule), j + k * len(molecule)) for k in range(count) for i, j in bonds]
    with atomic_write(path) as temporary:
        pdb = temporary.with_suffix(".pdb")  # the writer goes by the ending
        write_topology(Structure(atoms, make_topology(atoms, bonds)), pdb)
        pdb.replace(temporary)


def tasks_of(protocol: Protocol, subject: Subject, sources: dict[str, str]) -> list[Task]:
    """All tasks of a protocol, comparisons after what they compare.

    Raises
    ------
    InputError : nothing to run or to judge, or lengths that are no run.
    """
    if not subject.models:
        raise InputError("no model to validate; give one, as in: mlff-student validate tiny")
    tasks: dict[str, Task] = {}
    sizes = {name: _size(source) for name, source in sources.items()}
    for step in protocol.steps:
        for model in subject.models:
            for engine in subject.engines:
                make = _runs if isinstance(step, Runs) else _liquid
                for task in make(step, model, engine, subject.teacher, sources, sizes):
                    if tasks.setdefault(task.name, task) != task:
                        raise InputError(
                            f"two runs are called {task.name}; rename a structure or a step"
                        )
    if not any(task.judged for task in tasks.values()):
        raise InputError("the protocol has nothing that a verdict could be made of")
    return list(tasks.values())


def label_of(model: str) -> str:
    """A model's name in names of tasks and in tables."""
    path = Path(model)
    stem = path.parent.name if path.name == "model.pt" else path.stem
    return stem.replace(":", "-").replace("/", "-") or "model"


def _settings(
    model: str, engine: str, source: str, ensemble: str, ps: float, timestep_fs: float,
    temperature_K: float, thermalise_ps: float, every: int, seed: int = 1,
    thermalise_timestep_fs: float = 0.0, guide: str = "",
) -> MDSettings:  # fmt: skip
    steps = round(1000.0 * ps / timestep_fs / every) * every
    return MDSettings(
        engine=engine,
        model=model,
        structure=source,
        steps=steps,
        timestep_fs=timestep_fs,
        temperature_K=temperature_K,
        ensemble=ensemble,
        every=every,
        thermalise_steps=max(
            2, round(1000.0 * thermalise_ps / (thermalise_timestep_fs or timestep_fs))
        ),
        friction_per_ps=FRICTION_PER_PS,
        seed=seed,
        threads=1,
        thermalise_timestep_fs=thermalise_timestep_fs,
        guide=guide,
    )


def _runs(
    step: Runs, model: str, engine: str, teacher: str, sources: dict[str, str], sizes: Sizes
) -> Iterator[Task]:
    head = f"{label_of(model)}/{engine}/{step.step}"
    for structure in step.structures:
        label = label_of(structure)
        size = sizes[structure]
        few = size["atoms"] <= step.judged_to_atoms
        for ps in step.ps:
            for temperature in step.temperatures_K:
                cold = temperature <= step.judged_to_K
                names: dict[float, str] = {}
                for timestep in step.timesteps_fs:
                    every = step.every(ps, timestep)
                    case = f"{temperature:g}K-{timestep:g}fs"
                    name = f"{head}/{label}-{ps:g}ps-{case}"
                    if timestep <= step.judged_to_fs:
                        names[timestep] = name
                    run = RunTask(
                        name=name,
                        step=step.step,
                        structure=label,
                        settings=_settings(
                            model, engine, sources[structure], "nve", ps, timestep, temperature,
                            step.thermalise_ps, every,
                            thermalise_timestep_fs=min(step.timesteps_fs),
                        ),
                        judged=cold and few and timestep <= step.judged_to_fs,
                        teacher=teacher if step.teacher_frames else "",
                        teacher_frames=step.teacher_frames,
                        **size,
                    )  # fmt: skip
                    yield run
                    if teacher and step.spectrum_teacher_ps:
                        rows = round(1e3 * step.spectrum_teacher_ps / timestep / every)
                        reference = replace(
                            run,
                            name=f"{label_of(teacher)}/ase/{step.step}/{label}-"
                            f"{step.spectrum_teacher_ps:g}ps-{case}",
                            settings=replace(
                                run.settings, engine="ase", model=teacher, steps=rows * every
                            ),
                            judged=False,
                            teacher="",
                            teacher_frames=0,
                        )
                        yield reference
                        yield CompareTask(
                            name=f"{name}-spectrum",
                            step=step.step,
                            structure=label,
                            kind="spectrum",
                            needs=(run.name, reference.name),
                            references=(reference.name,),
                            judged=run.judged,
                            **size,
                        )
                if len(names) > 1:
                    yield CompareTask(
                        name=f"{head}/{label}-{ps:g}ps-{temperature:g}K-convergence",
                        step=step.step,
                        structure=label,
                        kind="convergence",
                        needs=tuple(names.values()),
                        window_ps=CONVERGENCE_PS,
                        timesteps_fs=tuple(names),
                        judged=cold and few,
                        **size,
                    )


def _size(source: str) -> dict[str, int]:
    """Atoms and molecules of a structure."""
    structure = read_structure(source)
    atoms = len(structure.atoms)
    fragments = connected_fragments(atoms, bond_pairs(structure.topology).tolist())
    return {"atoms": atoms, "molecules": int(fragments.max()) + 1}


def _liquid(
    step: Liquid, model: str, engine: str, teacher: str, sources: dict[str, str], sizes: Sizes
) -> Iterator[Task]:
    every = max(1, round(step.frame_fs / step.timestep_fs))
    size = sizes[step.box]

    def run(
        model: str, engine: str, ensemble: str, ps: float, replica: int, against: str, judged: bool,
        every: int = every, guide: str = "", thermalise_ps: float = step.thermalise_ps,
    ) -> RunTask:  # fmt: skip
        return RunTask(
            name=f"{label_of(model)}/{engine}/{step.step}/{label_of(step.box)}-{ensemble}-{replica}",
            step=step.step,
            structure=label_of(step.box),
            settings=_settings(
                model, engine, sources[step.box], ensemble, ps, step.timestep_fs,
                step.temperature_K, thermalise_ps, every, seed=replica, guide=guide,
            ),
            judged=judged,
            teacher=against if step.teacher_frames else "",
            teacher_frames=step.teacher_frames,
            **size,
        )  # fmt: skip

    replicas = range(1, step.replicas + 1)
    constant_volume: list[str] = []
    if step.nvt_ps:
        for k in replicas:
            against = teacher if k == 1 else ""
            task = run(model, engine, "nvt", step.nvt_ps, k, against, step.judged)
            constant_volume.append(task.name)
            yield task
    if step.npt_ps and engine != "ase":
        yield run(model, engine, "npt", step.npt_ps, 1, "", step.judged)
    if teacher and step.teacher_ps and constant_volume:
        references = []
        for k in replicas:
            task = run(
                teacher, "ase", "nvt", step.teacher_ps, k, "", False,
                max(1, round(step.move_fs / step.timestep_fs)) if step.guide else every, step.guide,
                step.teacher_thermalise_ps or step.thermalise_ps,
            )  # fmt: skip
            references.append(task.name)
            yield replace(task, teacher="", teacher_frames=0)
        yield CompareTask(
            name=f"{label_of(model)}/{engine}/{step.step}/{label_of(step.box)}-rdf",
            step=step.step,
            structure=label_of(step.box),
            kind="rdf",
            needs=(*constant_volume, *references),
            references=tuple(references),
            burn_in_ps=step.burn_in_ps,
            window_ps=float("inf")
            if step.guide
            else min(step.teacher_ps, step.nvt_ps) - step.burn_in_ps,
            judged=step.judged,
            **size,
        )
