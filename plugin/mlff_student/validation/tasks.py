"""Turn a protocol into tasks: runs and comparisons of finished runs, each with a result."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlff_student.analysis.bonds import bond_pairs
from mlff_student.archive.registry import model_file, read_card
from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write
from mlff_student.distill.molecules import LIBRARY, Molecule, read_library
from mlff_student.engines.protocol import MDSettings
from mlff_student.structures.checks import connected_fragments
from mlff_student.structures.packing import LIQUID_PACKING, liquid_box, molecular_volume
from mlff_student.structures.reading import Structure, make_topology, read_structure, write_topology
from mlff_student.structures.smiles import embed
from mlff_student.teachers.registry import is_teacher
from mlff_student.validation.protocol import CONVERGENCE_PS, Box, Liquid, Protocol, Runs

FRICTION_PER_PS = 10.0  # of Langevin dynamics; it heats within some tenths of a picosecond


class Size(NamedTuple):
    """Size of a structure.

    Attributes
    ----------
    atoms, molecules : int
        Number of atoms and of molecules.
    """

    atoms: int
    molecules: int


Sizes = dict[str, Size]  # by the name of the structure


@dataclass(frozen=True)
class RunTask:
    """A run, and what is measured of it.

    Attributes
    ----------
    name : str
        MODEL/ENGINE/STEP/CASE, which is also the folder of the run and the file of its result.
    step : str
        Name of the step of the protocol.
    structure : str
        Short name of the structure.
    settings : MDSettings
        Settings of the run.
    judged : bool
        Whether the run is judged.
    teacher : str
        Teacher whose forces are compared. Empty: no comparison.
    teacher_frames : int
        Number of frames on which forces are compared.
    proposal_model : str
        Student that proposes the moves of hybrid Monte Carlo, which samples the ensemble of the
        settings' model (`mlff_student.validation.reference_monte_carlo`). Empty: MD.
    equilibrate_ps : float
        Length at the start of a run at constant pressure that the density leaves out, ps.
    experiment : str
        Liquid of liquids.yaml whose density is compared with that of the run. Empty: no comparison.
    needs : tuple[str, ...]
        Names of tasks that must be done before. A run needs none.
    atoms, molecules : int
        Number of atoms and of molecules of the structure.
    """

    name: str
    step: str
    structure: str
    settings: MDSettings
    judged: bool = True
    teacher: str = ""
    teacher_frames: int = 0
    proposal_model: str = ""
    equilibrate_ps: float = 0.0
    experiment: str = ""
    needs: tuple[str, ...] = ()
    atoms: int = 0
    molecules: int = 1

    def identity(self) -> dict[str, Any]:
        """Return what the run is, as a part of its record that exists also if the run fails.

        `duration_ps` is the planned length. The analysis replaces it by the length that was
        reached.
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
    """A comparison of several finished runs.

    Attributes
    ----------
    name : str
        MODEL/ENGINE/STEP/CASE, which is also the file of its result.
    step : str
        Name of the step of the protocol.
    structure : str
        Short name of the structure.
    kind : str
        "convergence" of the energy with the timestep, or comparison of "rdf", "spectrum", "density"
        or "vaporisation" with the teacher's. For "vaporisation", the last run and the last
        reference are those of the gas.
    needs : tuple[str, ...]
        Names of the runs, those of the teacher included.
    references : tuple[str, ...]
        Names of the teacher's runs.
    burn_in_ps : float
        Length at the start of each run that is left out, ps.
    window_ps : float
        Length of each run after `burn_in_ps` that is compared, ps.
    timesteps_fs : tuple[float, ...]
        Timestep of each run, fs.
    with_rdf : bool
        Whether a comparison of densities also compares radial distribution functions.
    judged : bool
        Whether the comparison is judged.
    atoms, molecules : int
        Number of atoms and of molecules of the structure.
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
    with_rdf: bool = False
    judged: bool = True
    atoms: int = 0
    molecules: int = 1

    def identity(self) -> dict[str, Any]:
        """Return what is compared, as a part of the record that exists also if the task fails."""
        return {"kind": self.kind, "atoms": self.atoms, "molecules": self.molecules}


Task = RunTask | CompareTask


@dataclass(frozen=True)
class CampaignTarget:
    """The models, engines and teacher of a campaign.

    Attributes
    ----------
    models : tuple[str, ...]
        Shipped names, checkpoints or archives. With the engine "ase" also names of teachers.
    engines : tuple[str, ...]
        MD engines: "openmm", "lammps" or "ase".
    teacher : str
        Name for `mlff_student.teachers.registry.make_teacher`. Empty: no comparison with a teacher.
    """

    models: tuple[str, ...]
    engines: tuple[str, ...]
    teacher: str = ""


def held_out_molecules(models: tuple[str, ...], count: int) -> list[Molecule]:
    """Return molecules of the library that are in the test sets of all models' cards.

    Parameters
    ----------
    models : tuple[str, ...]
        Models with cards. Teachers have none.
    count : int
        Number of molecules. They are evenly spaced from the shortest to the longest SMILES.

    Returns
    -------
    list[Molecule]
        The molecules, by increasing length of their SMILES.

    Raises
    ------
    InputError
        If the cards have fewer such molecules in common.
    ArchiveError
        If there is no such model.
    """
    names = {molecule.name for molecule in read_library(LIBRARY)}
    for model in models:
        card = {} if is_teacher(model) else read_card(model_file(model))
        names &= set(card.get("held_out", {}).get("test", []))
    molecules = sorted(
        (molecule for molecule in read_library(LIBRARY) if molecule.name in names),
        key=lambda molecule: len(molecule.smiles),
    )
    if len(molecules) < count:
        raise InputError(
            f"{count} held-out molecules are asked for, but the cards of {', '.join(models)} have "
            f"only {len(molecules)} molecules of the library in common"
        )
    chosen = np.linspace(0, len(molecules) - 1, count).round().astype(int)
    return [molecules[k] for k in chosen]


def with_held_out(protocol: Protocol, models: tuple[str, ...]) -> Protocol:
    """Return the protocol with the names of held-out molecules in place of their number.

    Parameters
    ----------
    protocol : Protocol
        Protocol whose steps may have a number of held-out molecules.
    models : tuple[str, ...]
        Models with cards.

    Returns
    -------
    Protocol
        Protocol whose steps have names of structures only.

    Raises
    ------
    InputError, ArchiveError
        As from `held_out_molecules`.
    """
    steps = []
    for step in protocol.steps:
        if isinstance(step, Runs) and step.held_out:
            names = [molecule.name for molecule in held_out_molecules(models, step.held_out)]
            step = replace(step, structures=(*step.structures, *names), held_out=0)
        steps.append(step)
    return replace(protocol, steps=tuple(steps))


def prepare_structures(protocol: Protocol, folder: Path) -> dict[str, str]:
    """Return the source that `read_structure` reads for each structure of a protocol.

    Boxes are packed and written into the folder if they are not there yet.

    Parameters
    ----------
    protocol : Protocol
        Protocol from `with_held_out`.
    folder : Path
        Folder for boxes.

    Returns
    -------
    dict[str, str]
        File or SMILES by the name of the structure in the protocol.

    Raises
    ------
    InputError
        If a structure is no box, no molecule of the library, no file and no SMILES.
    """
    library = {molecule.name: molecule.smiles for molecule in read_library(LIBRARY)}
    folder.mkdir(parents=True, exist_ok=True)
    names = [
        name
        for step in protocol.steps
        for name in (step.structures if isinstance(step, Runs) else _names(step, protocol))
    ]
    sources = {}
    for name in dict.fromkeys(names):
        if name in protocol.boxes:
            path = folder / f"{name}.pdb"
            if not path.exists():
                write_box(protocol.boxes[name], path)
            sources[name] = str(path)
        else:
            sources[name] = library.get(name, name)
            read_structure(sources[name])  # raises an error here if it cannot be read
    return sources


def _names(step: Liquid, protocol: Protocol) -> tuple[str, ...]:
    """Return the box of a liquid and, if the gas is run as well, the SMILES of its molecule."""
    gas = (protocol.boxes[step.box].smiles,) if step.gas_ps else ()
    return (step.box, *gas)


def write_box(box: Box, path: Path) -> None:
    """Write a PDB file of molecules packed at random into a periodic box at a liquid's density.

    Parameters
    ----------
    box : Box
        Molecule, number of molecules and random seed.
    path : Path
        PDB file to write.

    Raises
    ------
    InputError
        If the SMILES cannot be read, or the molecules do not fit.
    """
    molecule, bonds = embed(box.smiles)
    volume = box.count * molecular_volume(box.smiles) / LIQUID_PACKING
    atoms = liquid_box([molecule] * box.count, volume, np.random.default_rng(box.seed))
    size = len(molecule)
    bonds = [(i + k * size, j + k * size) for k in range(box.count) for i, j in bonds]
    with atomic_write(path) as temporary:
        pdb = temporary.with_suffix(".pdb")  # the writer takes the format from the ending
        write_topology(Structure(atoms, make_topology(atoms, bonds)), pdb)
        pdb.replace(temporary)


def tasks_of(protocol: Protocol, target: CampaignTarget, sources: dict[str, str]) -> list[Task]:
    """Return all tasks of a protocol, with comparisons after the runs that they compare.

    Parameters
    ----------
    protocol : Protocol
        Protocol from `with_held_out`.
    target : CampaignTarget
        Models, engines and teacher.
    sources : dict[str, str]
        Sources of the structures from `prepare_structures`.

    Returns
    -------
    list[Task]
        The tasks.

    Raises
    ------
    InputError
        If there is nothing to run or to judge, two runs have the same name, or a length is
        impossible.
    """
    if not target.models:
        raise InputError("there is no model to validate; give a model: mlff-student validate tiny")
    tasks: dict[str, Task] = {}
    sizes = {name: _size(source) for name, source in sources.items()}
    for step in protocol.steps:
        for model in target.models:
            for engine in target.engines:
                others = (model, engine, target.teacher, sources, sizes)
                if isinstance(step, Runs):
                    of_step = _runs(step, *others)
                else:
                    of_step = _liquid(step, _names(step, protocol), *others)
                for task in of_step:
                    if tasks.setdefault(task.name, task) != task:
                        raise InputError(
                            f"two runs have the name {task.name}; rename a structure or a step"
                        )
    if not any(task.judged for task in tasks.values()):
        raise InputError("the protocol has nothing to judge; raise its judged_to_... or set judged")
    return list(tasks.values())


def label_of(model: str) -> str:
    """Return the short name of a model in names of tasks and in tables.

    Parameters
    ----------
    model : str
        Shipped name, checkpoint, archive or name of a teacher.

    Returns
    -------
    str
        Name that can be that of a folder.
    """
    path = Path(model)
    stem = path.parent.name if path.name == "model.pt" else path.stem
    return stem.replace(":", "-").replace("/", "-") or "model"


def _settings(
    model: str, engine: str, source: str, ensemble: str, ps: float, timestep_fs: float,
    temperature_K: float, thermalise_ps: float, every: int, seed: int = 1,
    thermalise_timestep_fs: float = 0.0, threads: int = 1, pressure_bar: float = 1.01325,
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
        threads=threads,
        thermalise_timestep_fs=thermalise_timestep_fs,
        pressure_bar=pressure_bar,
    )


def _runs(
    step: Runs, model: str, engine: str, teacher: str, sources: dict[str, str], sizes: Sizes
) -> Iterator[Task]:
    head = f"{label_of(model)}/{engine}/{step.step}"
    for structure in step.structures:
        label = label_of(structure)
        size = sizes[structure]
        few = size.atoms <= step.judged_to_atoms
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
                        atoms=size.atoms,
                        molecules=size.molecules,
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
                            atoms=size.atoms,
                            molecules=size.molecules,
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
                        atoms=size.atoms,
                        molecules=size.molecules,
                    )


def _size(source: str) -> Size:
    structure = read_structure(source)
    atoms = len(structure.atoms)
    fragments = connected_fragments(atoms, bond_pairs(structure.topology).tolist())
    return Size(atoms, int(fragments.max()) + 1)


def _liquid(
    step: Liquid, names: tuple[str, ...], model: str, engine: str, teacher: str,
    sources: dict[str, str], sizes: Sizes,
) -> Iterator[Task]:  # fmt: skip
    every = max(1, round(step.frame_fs / step.timestep_fs))
    moves = max(1, round(step.move_fs / step.timestep_fs)) if step.proposal_model else every
    size = sizes[step.box]

    def run(
        model: str, engine: str, ensemble: str, ps: float, replica: int, every: int,
        thermalise_ps: float = step.thermalise_ps, gas: bool = False, **options: Any,
    ) -> RunTask:  # fmt: skip
        structure = names[-1] if gas else step.box
        case = f"{label_of(step.box)}-{'gas' if gas else ensemble}-{replica}"
        return RunTask(
            name=f"{label_of(model)}/{engine}/{step.step}/{case}",
            step=step.step,
            structure=label_of(step.box),
            settings=_settings(
                model, engine, sources[structure], ensemble, ps, step.timestep_fs,
                step.temperature_K, thermalise_ps, every,
                seed=step.seed + replica - 1, threads=step.threads, pressure_bar=step.pressure_bar,
            ),
            **options,
            atoms=sizes[structure].atoms,
            molecules=sizes[structure].molecules,
        )  # fmt: skip

    replicas = range(1, step.replicas + 1)
    constant_volume: list[str] = []
    if step.nvt_ps:
        for k in replicas:
            against = teacher if k == 1 and step.teacher_frames else ""
            task = run(
                model, engine, "nvt", step.nvt_ps, k, every,
                judged=step.judged, teacher=against, teacher_frames=step.teacher_frames,
            )  # fmt: skip
            constant_volume.append(task.name)
            yield task
    # ASE has no constant pressure. The run is left out beside NVT; alone, it raises an error.
    constant_pressure = ""
    if step.npt_ps and (engine != "ase" or not step.nvt_ps):
        task = run(
            model, engine, "npt", step.equilibrate_ps + step.npt_ps, 1, every, judged=step.judged,
            equilibrate_ps=step.equilibrate_ps, experiment=step.experiment,
        )  # fmt: skip
        constant_pressure = task.name
        yield task

    def of_teacher(ensemble: str, ps: float, replica: int, **options: Any) -> RunTask:
        return run(
            teacher, "ase", ensemble, ps, replica, moves, judged=False,
            proposal_model=step.proposal_model,
            thermalise_ps=step.teacher_thermalise_ps or step.thermalise_ps, **options,
        )  # fmt: skip

    def comparison(kind: str, runs: list[str], references: list[str], **options: Any) -> Task:
        return CompareTask(
            name=f"{label_of(model)}/{engine}/{step.step}/{label_of(step.box)}-{kind}",
            step=step.step,
            structure=label_of(step.box),
            kind=kind,
            needs=(*runs, *references),
            references=tuple(references),
            judged=step.judged,
            atoms=size.atoms,
            molecules=size.molecules,
            **options,
        )

    compared = bool(teacher and step.teacher_ps and constant_volume)
    if compared:
        tasks = [of_teacher("nvt", step.teacher_ps, k) for k in replicas]
        yield from tasks
        window_ps = min(step.teacher_ps, step.nvt_ps) - step.burn_in_ps
        yield comparison(
            "rdf", constant_volume, [task.name for task in tasks], burn_in_ps=step.burn_in_ps,
            window_ps=float("inf") if step.proposal_model else window_ps,
        )  # fmt: skip
    if teacher and step.teacher_npt_ps and constant_pressure:
        options = {"equilibrate_ps": step.equilibrate_ps, "experiment": step.experiment}
        ps = step.equilibrate_ps + step.teacher_npt_ps
        tasks = [of_teacher("npt", ps, k, **options) for k in replicas]
        yield from tasks
        boxes = [task.name for task in tasks]
        burn_in = {"burn_in_ps": step.equilibrate_ps}
        yield comparison("density", [constant_pressure], boxes, with_rdf=not compared, **burn_in)
        if step.gas_ps:
            gas = run(model, engine, "nvt", step.gas_ps, 1, every, judged=False, gas=True)
            reference = of_teacher("nvt", step.gas_ps, 1, gas=True)
            yield from (gas, reference)
            runs = [constant_pressure, gas.name]
            yield comparison("vaporisation", runs, [*boxes, reference.name], **burn_in)
