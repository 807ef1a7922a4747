"""Read protocols, the YAML files that say which runs a validation makes."""

import re
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import yaml

from mlff_student.analysis.thermo import FEWEST_ROWS
from mlff_student.core.errors import InputError, check_key
from mlff_student.core.settings import read_settings
from mlff_student.engines.protocol import ENGINES
from mlff_student.structures.smiles import identity

PROTOCOLS = Path(__file__).with_name("protocols")
LIQUIDS = Path(__file__).with_name("liquids.yaml")
SPECTRUM_FRAME_FS = 4.0  # resolves the O-H stretch
# Welch windows for 10 1/cm are 3.34 ps long and overlap by half. The run needs a window; the
# teacher's run needs two, whose difference is the noise.
SPECTRUM_PS, SPECTRUM_TEACHER_PS = 3.4, 5.1
# Runs with several timesteps from the same state follow the same trajectory for this time. Only
# there do their energy errors differ by the timestep alone.
CONVERGENCE_PS = 0.3
LEAST_RATIO = 2.0  # of neighbouring timesteps; the threshold of convergence_deviation assumes it
MAY_BE_ZERO = ("thermalise_ps", "teacher_frames", "spectrum_teacher_ps", "held_out")
MAY_BE_ZERO += ("nvt_ps", "npt_ps", "teacher_ps", "teacher_thermalise_ps", "burn_in_ps", "judged")
MAY_BE_ZERO += ("equilibrate_ps", "threads", "teacher_npt_ps", "gas_ps")
FILE_NAME = re.compile(r"\w[\w.+-]*")


def _check_numbers(step: "Box | Runs | Liquid") -> None:
    for name, value in asdict(step).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, str) or name == "pressure_bar":
                continue
            if not (number >= 0 if name in MAY_BE_ZERO else number > 0):
                kind = "not be negative" if name in MAY_BE_ZERO else "be positive"
                raise InputError(f"{name} must {kind}, got {number}")
            if number == float("inf") and not name.startswith("judged_to"):
                raise InputError(f"{name} must be finite, got {number}")


def _check_name(name: str, of: str) -> None:
    if not FILE_NAME.fullmatch(name):
        raise InputError(
            f"{of} {name!r} cannot be the name of a folder; use letters, digits, '_', '-', '+' and "
            "'.' only"
        )


@dataclass(frozen=True)
class Box:
    """A periodic box of equal molecules.

    Attributes
    ----------
    smiles : str
        SMILES of the molecule.
    count : int
        Number of molecules.
    seed : int
        Random seed of the packing.
    """

    smiles: str
    count: int
    seed: int = 1

    __post_init__ = _check_numbers


@dataclass(frozen=True)
class Runs:
    """Runs at constant energy: every structure with every length, temperature and timestep.

    Attributes
    ----------
    step : str
        Name of the step. In steps with the names `temperature_ladder`, `timestep_ladder` and
        `size_ladder`, the report shows how figures depend on that quantity.
    structures : tuple[str, ...]
        Names of boxes of the protocol, names of molecules of the library, SMILES, or files.
    held_out : int
        Number of molecules to add to `structures`. They are taken from the test set in the cards of
        the models, evenly spaced from the shortest to the longest SMILES.
    ps : tuple[float, ...]
        Lengths of the production runs, ps.
    temperatures_K : tuple[float, ...]
        Temperatures of the thermalisation, K.
    timesteps_fs : tuple[float, ...]
        Timesteps, fs.
    thermalise_ps : float
        Length of Langevin dynamics before production, ps.
    frames : int
        Number of frames of the trajectory and rows of the log in each run.
    teacher_frames : int
        Number of evenly spaced frames whose forces are compared with the teacher's.
    spectrum_teacher_ps : float
        Length of a run of the teacher for each structure, ps, with the same temperature and
        timestep. Its vibrational spectrum is compared with the run's. Both need a frame every 4 fs
        or more often. 0: no such run.
    judged_to_K, judged_to_fs, judged_to_atoms : float
        Largest temperature (K), timestep (fs) and number of atoms of the runs that are judged. Runs
        beyond are reported but not judged, and show up to where a model works.
    """

    step: str
    structures: tuple[str, ...] = ()
    held_out: int = 0
    ps: tuple[float, ...] = (10.0,)
    temperatures_K: tuple[float, ...] = (300.0,)
    timesteps_fs: tuple[float, ...] = (0.5,)
    thermalise_ps: float = 2.0
    frames: int = 1000
    teacher_frames: int = 0
    spectrum_teacher_ps: float = 0.0
    judged_to_K: float = float("inf")
    judged_to_fs: float = float("inf")
    judged_to_atoms: float = float("inf")

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not self.structures and not self.held_out:
            raise InputError(f"step {self.step}: missing structures; give structures or held_out")
        frame_fs = 1e3 * max(self.ps) / self.frames
        if self.spectrum_teacher_ps and frame_fs > SPECTRUM_FRAME_FS:
            raise InputError(
                f"step {self.step}: a spectrum needs a frame every {SPECTRUM_FRAME_FS:g} fs, got "
                f"a frame every {frame_fs:g} fs; raise frames"
            )
        if 0.0 < self.spectrum_teacher_ps < SPECTRUM_TEACHER_PS:
            raise InputError(
                f"step {self.step}: a spectrum and its noise need {SPECTRUM_TEACHER_PS:g} ps of "
                f"the teacher, got spectrum_teacher_ps {self.spectrum_teacher_ps:g}"
            )
        if self.spectrum_teacher_ps and min(self.ps) < SPECTRUM_PS:
            raise InputError(
                f"step {self.step}: a spectrum needs {SPECTRUM_PS:g} ps, got ps {min(self.ps):g}"
            )
        for unit, least in (("K", min(self.temperatures_K)), ("fs", min(self.timesteps_fs))):
            if least > (limit := getattr(self, f"judged_to_{unit}")):
                raise InputError(
                    f"step {self.step}: judged_to_{unit} {limit:g} leaves nothing to judge, the "
                    f"lowest is {least:g} {unit}"
                )
        judged = sorted(fs for fs in self.timesteps_fs if fs <= self.judged_to_fs)
        if any(b < LEAST_RATIO * a for a, b in pairwise(judged)):
            raise InputError(
                f"step {self.step}: timesteps {', '.join(f'{fs:g}' for fs in judged)} fs are too "
                "close to measure the order of their errors; each must be at least twice the one "
                "before"
            )
        for ps in self.ps:
            for timestep_fs in self.timesteps_fs:
                self._check_rows(ps, timestep_fs, "a run")
            for timestep_fs in judged if len(judged) > 1 else ():
                self._check_rows(min(ps, CONVERGENCE_PS), timestep_fs, "convergence", ps)

    def every(self, ps: float, timestep_fs: float) -> int:
        """Return the number of steps between frames.

        Parameters
        ----------
        ps : float
            Length of the run, ps.
        timestep_fs : float
            Timestep, fs.

        Returns
        -------
        int
            Number of steps, at least 1.
        """
        return max(1, round(1e3 * ps / timestep_fs / self.frames))

    def _check_rows(
        self, ps: float, timestep_fs: float, what: str, of_ps: float | None = None
    ) -> None:
        rows = int(1e3 * ps / timestep_fs / self.every(of_ps or ps, timestep_fs) + 1e-6)
        if rows < FEWEST_ROWS:
            raise InputError(
                f"step {self.step}: {what} needs {FEWEST_ROWS} frames or more, got {rows} in "
                f"{ps:g} ps at {timestep_fs:g} fs; raise frames or ps"
            )


@dataclass(frozen=True)
class Liquid:
    """Runs of a periodic box at constant temperature and at constant pressure.

    The teacher can run the same box, and a single molecule, for comparison.

    Attributes
    ----------
    step : str
        Name of the step.
    box : str
        Name of a box of the protocol.
    nvt_ps, npt_ps : float
        Lengths of the runs at constant volume and at constant pressure, ps. 0: no such run.
    equilibrate_ps : float
        Length at constant pressure before `npt_ps`, and before `teacher_npt_ps`, ps. The density is
        measured after it.
    pressure_bar : float
        Pressure of the runs at constant pressure, bar.
    experiment : str
        Name of a liquid in liquids.yaml. Its experimental density at 298.15 K and 1 bar is compared
        with that of the run. Empty: no comparison.
    replicas : int
        Number of runs at constant volume with different random seeds, of the student and of the
        teacher each.
    seed : int
        Random seed of the first replica and of the run at constant pressure. The other replicas
        have the next numbers.
    threads : int
        Number of threads, as in `MDSettings`. 0: all cores for large boxes.
    teacher_ps : float
        Length of each run of the teacher, ps. 0: no such run. The radial distribution functions of
        the student are computed from a part of the same length of each replica.
    teacher_npt_ps : float
        Length of all moves of each chain of the teacher at constant pressure, ps. Its density is
        compared with that of the run at constant pressure and, without runs of the teacher at
        constant volume, also its radial distribution functions. It needs a proposal model. 0: no
        such run.
    gas_ps : float
        Length of runs of a single molecule in vacuum at constant temperature, of the student and of
        the teacher, ps. With `teacher_npt_ps`, enthalpies of vaporisation are compared. 0: no such
        runs.
    teacher_thermalise_ps : float
        Length of the thermalisation of the teacher's runs, ps. It takes little time with a proposal
        model. 0: `thermalise_ps`.
    burn_in_ps : float
        Length at the start of each run at constant volume that radial distribution functions leave
        out, ps. In hybrid Monte Carlo it is the length of all moves together.
    proposal_model : str
        Student whose trajectories of the length `move_fs` are the moves of hybrid Monte Carlo: a
        shipped name, checkpoint or archive. Hybrid Monte Carlo samples the teacher's ensemble in
        place of MD with the teacher. `teacher_ps` is then the length of all moves together, and
        radial distribution functions are computed from all frames after `burn_in_ps`. Empty: MD.
    move_fs : float
        Mean length of the moves of hybrid Monte Carlo, fs.
    temperature_K : float
        Temperature, K.
    timestep_fs : float
        Timestep, fs.
    thermalise_ps : float
        Length of Langevin dynamics before production, ps.
    frame_fs : float
        Time between frames, fs.
    teacher_frames : int
        Number of evenly spaced frames whose forces are compared with the teacher's.
    judged : bool
        Whether the step is judged.
    """

    step: str
    box: str
    nvt_ps: float = 10.0
    npt_ps: float = 10.0
    equilibrate_ps: float = 0.0
    pressure_bar: float = 1.01325
    experiment: str = ""
    replicas: int = 2
    seed: int = 1
    threads: int = 1
    teacher_ps: float = 0.0
    teacher_npt_ps: float = 0.0
    gas_ps: float = 0.0
    teacher_thermalise_ps: float = 0.0
    burn_in_ps: float = 0.0
    proposal_model: str = ""
    move_fs: float = 40.0
    temperature_K: float = 300.0
    timestep_fs: float = 0.5
    thermalise_ps: float = 2.0
    frame_fs: float = 10.0
    teacher_frames: int = 0
    judged: bool = True

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not self.nvt_ps and not self.npt_ps:
            raise InputError(
                f"step {self.step}: nvt_ps and npt_ps are 0, so there is nothing to run"
            )
        for name in ("nvt_ps", "npt_ps"):
            ps = getattr(self, name)
            if ps and 1e3 * ps < FEWEST_ROWS * self.frame_fs:
                raise InputError(
                    f"step {self.step}: a run needs {FEWEST_ROWS} frames or more, got {name} "
                    f"{ps:g} with a frame every {self.frame_fs:g} fs"
                )
        if self.experiment:
            check_key([self.experiment], known_liquids(), f"step {self.step}, experiment")
        if self.teacher_npt_ps and not (self.proposal_model and self.npt_ps):
            raise InputError(
                f"step {self.step}: teacher_npt_ps needs a proposal_model, whose trajectories are "
                "the moves of the teacher's chain, and npt_ps, the run it is compared with"
            )
        if self.gas_ps and not self.teacher_npt_ps:
            raise InputError(
                f"step {self.step}: gas_ps needs teacher_npt_ps; an enthalpy of vaporisation is "
                "that of a gas and of a liquid at constant pressure"
            )
        of_teacher = self.move_fs if self.proposal_model else self.frame_fs
        for name, frame_fs in (
            ("teacher_npt_ps", of_teacher),
            ("gas_ps", max(of_teacher, self.frame_fs)),
        ):
            ps = getattr(self, name)
            if ps and 1e3 * ps < FEWEST_ROWS * frame_fs:
                raise InputError(
                    f"step {self.step}: a run needs {FEWEST_ROWS} frames or more, got {name} "
                    f"{ps:g} with a frame every {frame_fs:g} fs"
                )
        for name, frame_fs in (("nvt_ps", self.frame_fs), ("teacher_ps", of_teacher)):
            left_fs = 1e3 * (getattr(self, name) - self.burn_in_ps)
            if self.teacher_ps and self.nvt_ps and left_fs < FEWEST_ROWS * frame_fs:
                raise InputError(
                    f"step {self.step}: burn_in_ps {self.burn_in_ps:g} leaves less than "
                    f"{FEWEST_ROWS} frames of {name} {getattr(self, name):g}, with a frame every "
                    f"{frame_fs:g} fs"
                )


@dataclass(frozen=True)
class Protocol:
    """The steps that `mlff-student validate` runs.

    Attributes
    ----------
    steps : tuple[Runs | Liquid, ...]
        Steps in their order.
    name : str
        Name of the file without its ending.
    about : str
        A paragraph that says what the protocol is for.
    boxes : dict[str, Box]
        Boxes by the names that steps use.
    models, engines : tuple[str, ...]
        Models and engines that are run if the command names none.
    source : str
        Name or file from which the protocol was loaded.
    command : str
        Command line that makes the protocol from options. Empty: `validate --protocol source`.
    """

    steps: tuple[Runs | Liquid, ...]
    name: str = ""
    about: str = ""
    boxes: dict[str, Box] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    engines: tuple[str, ...] = ("openmm",)
    source: str = field(default="", repr=False, compare=False)
    command: str = field(default="", repr=False, compare=False)

    @property
    def digest(self) -> str:
        """The SHA-256 of what is run: the steps and their boxes."""
        return sha256(repr((self.steps, sorted(self.boxes.items()))).encode()).hexdigest()


class KnownLiquid(NamedTuple):
    """A liquid whose density is known from experiment at 298.15 K and 1 bar.

    Attributes
    ----------
    smiles : str
        SMILES of the molecule.
    density_g_per_cm3 : float
        Density, g/cm^3.
    source : str
        Publication of the density.
    """

    smiles: str
    density_g_per_cm3: float
    source: str


def known_liquids() -> dict[str, KnownLiquid]:
    """Return the liquids of liquids.yaml by their names."""
    entries = yaml.safe_load(LIQUIDS.read_text())
    return {name: KnownLiquid(**entry) for name, entry in entries.items()}


def protocol_names() -> list[str]:
    """Return the names of the protocols in the package."""
    return sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


def load_protocol(source: str) -> Protocol:
    """Load a protocol.

    Parameters
    ----------
    source : str
        Name of a protocol of the package (`protocol_names`), or a YAML file.

    Returns
    -------
    Protocol
        The checked protocol.

    Raises
    ------
    InputError
        If there is no such file, `read_settings` refuses it, a number is impossible, a run is too
        short or has too few frames for what is to be measured, nothing would be judged, a name
        cannot be that of a folder, two steps have the same name, or a box, liquid or engine is
        unknown.
    """
    path = PROTOCOLS / f"{source}.yaml"
    if not path.is_file():
        path = Path(source)
    if not path.is_file():
        raise InputError(
            f"no protocol {source!r}; known: {', '.join(protocol_names())}, or a YAML file"
        )
    protocol = replace(read_settings(path, Protocol), name=path.stem, source=source)
    names = [step.step for step in protocol.steps]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two steps have the name {min(twice)!r}; rename one of them")
    for box in protocol.boxes:
        _check_name(box, "box")
    for step in protocol.steps:
        _check_name(step.step, "step")
        if isinstance(step, Liquid):
            check_key([step.box], protocol.boxes, f"step {step.step}, box")
            _check_experiment(step, protocol.boxes[step.box])
    check_key(protocol.engines, ENGINES, "engines")
    return protocol


def _check_experiment(step: Liquid, box: Box) -> None:
    if step.experiment:
        smiles = known_liquids()[step.experiment].smiles
        if identity(smiles) != identity(box.smiles):
            raise InputError(
                f"step {step.step}: the experiment is of {step.experiment} ({smiles}), but the box "
                f"{step.box} is of {box.smiles}"
            )


def liquid_protocol(
    liquid: str,
    *,
    molecules: int | None = None,
    equilibrate_ps: float | None = None,
    ps: float | None = None,
    temperature_K: float | None = None,
    pressure_bar: float | None = None,
    seed: int | None = None,
) -> Protocol:
    """Return the protocol `liquid` with another liquid or other conditions.

    A parameter that is None keeps the value of the protocol.

    Parameters
    ----------
    liquid : str
        Name of a liquid in liquids.yaml, whose experimental density is compared with that of the
        run, or SMILES.
    molecules : int | None
        Number of molecules in the box.
    equilibrate_ps, ps : float | None
        Lengths at constant pressure before the density is measured, and while it is measured, ps.
    temperature_K : float | None
        Temperature, K.
    pressure_bar : float | None
        Pressure, bar.
    seed : int | None
        Random seed of packing, velocities and thermostat.

    Returns
    -------
    Protocol
        The changed protocol.

    Raises
    ------
    InputError
        If a number is impossible, or a run is too short.
    """
    protocol = load_protocol("liquid")
    (step,) = protocol.steps
    assert isinstance(step, Liquid)
    box = protocol.boxes[step.box]
    known = known_liquids().get(liquid)
    changes = {
        "equilibrate_ps": equilibrate_ps,
        "npt_ps": ps,
        "temperature_K": temperature_K,
        "pressure_bar": pressure_bar,
        "seed": seed,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    box = Box(
        known.smiles if known else liquid,
        box.count if molecules is None else molecules,
        seed=box.seed if seed is None else seed,
    )
    if box.count < 2:
        raise InputError(f"a liquid needs two molecules or more, got {box.count}")
    name = liquid if known else "liquid"
    step = replace(step, box=name, experiment=liquid if known else "", **changes)
    return replace(protocol, boxes={name: box}, steps=(step,))


def stability_protocol(*, molecules: int | None = None, ps: float | None = None) -> Protocol:
    """Return the protocol `stability` with another number of held-out molecules or another length.

    Parameters
    ----------
    molecules : int | None
        Number of held-out molecules. None: that of the protocol.
    ps : float | None
        Length of each run, ps. None: that of the protocol.

    Returns
    -------
    Protocol
        The changed protocol.

    Raises
    ------
    InputError
        If a number is impossible, or a run is too short.
    """
    protocol = load_protocol("stability")
    (step,) = protocol.steps
    changes = {"held_out": molecules, "ps": None if ps is None else (ps,)}
    step = replace(step, **{name: value for name, value in changes.items() if value is not None})
    return replace(protocol, steps=(step,))
