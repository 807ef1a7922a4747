"""Protocols: which runs a model must stand, read from YAML files."""

import re
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

from mlff_student.analysis.thermo import FEWEST_ROWS
from mlff_student.core.errors import InputError, check_key
from mlff_student.core.settings import read_settings
from mlff_student.engines.protocol import ENGINES

PROTOCOLS = Path(__file__).with_name("protocols")
SPECTRUM_FRAME_FS = 4.0  # resolves the O-H stretch
# Welch windows of 10 1/cm last 3.34 ps and overlap by half: one for the run, and two, whose
# difference is the noise, for the teacher's.
SPECTRUM_PS, SPECTRUM_TEACHER_PS = 3.4, 5.1
# Runs of several timesteps from one state are one trajectory for as long: only then do their energy
# errors differ by the timestep alone.
CONVERGENCE_PS = 0.3
LEAST_RATIO = 2.0  # of neighbouring timesteps, for which convergence_deviation's threshold is set
NONE = ("thermalise_ps", "teacher_frames", "spectrum_teacher_ps")  # that may be 0
NONE += ("nvt_ps", "npt_ps", "teacher_ps", "teacher_thermalise_ps", "burn_in_ps", "judged")
FILE_NAME = re.compile(r"\w[\w.+-]*")


def _check_numbers(step: "Box | Runs | Liquid") -> None:
    for name, value in asdict(step).items():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str):
                continue
            if not (one >= 0 if name in NONE else one > 0):
                kind = "not be negative" if name in NONE else "be positive"
                raise InputError(f"{name} must {kind}, got {one}")
            if one == float("inf") and not name.startswith("judged_to"):
                raise InputError(f"{name} must be finite, got {one}")


def _check_name(name: str, of: str) -> None:
    if not FILE_NAME.fullmatch(name):
        raise InputError(
            f"{of} {name!r} is a folder's name as well; take letters, digits, '_', '-', '+' and '.'"
        )


@dataclass(frozen=True)
class Box:
    """A periodic box of equal molecules.

    Attributes
    ----------
    smiles : of the molecule.
    count : of molecules.
    """

    smiles: str
    count: int

    __post_init__ = _check_numbers


@dataclass(frozen=True)
class Runs:
    """Constant-energy runs: every structure at every length, temperature and timestep.

    Attributes
    ----------
    step : name of the step; `temperature_ladder`, `timestep_ladder` and `size_ladder` are read as
        ladders along that quantity.
    structures : names of the protocol's boxes or the library's molecules, SMILES, or files.
    ps : lengths of production.
    temperatures_K, timesteps_fs : as they say.
    thermalise_ps : of Langevin dynamics before.
    frames : of trajectory and log, of each run.
    teacher_frames : of these, evenly spread, whose forces are compared with the teacher's.
    spectrum_teacher_ps : length of the teacher's own run of each structure, at the same
        temperature and timestep, whose vibrational spectrum the run's is held against; 0 for none.
        Both then need a frame every 4 fs or less.
    judged_to_K, judged_to_fs, judged_to_atoms : the verdict counts runs up to these; what is beyond
        is reported, to say where a model ends.
    """

    step: str
    structures: tuple[str, ...]
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
        frame_fs = 1e3 * max(self.ps) / self.frames
        if self.spectrum_teacher_ps and frame_fs > SPECTRUM_FRAME_FS:
            raise InputError(
                f"step {self.step}: a spectrum needs a frame every {SPECTRUM_FRAME_FS:g} fs, got "
                f"one every {frame_fs:g}; raise frames"
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
        for what, least in (("K", min(self.temperatures_K)), ("fs", min(self.timesteps_fs))):
            if least > (limit := getattr(self, f"judged_to_{what}")):
                raise InputError(
                    f"step {self.step}: judged_to_{what} {limit:g} leaves nothing to judge, the "
                    f"lowest is {least:g} {what}"
                )
        ladder = sorted(one for one in self.timesteps_fs if one <= self.judged_to_fs)
        if any(b < LEAST_RATIO * a for a, b in pairwise(ladder)):
            raise InputError(
                f"step {self.step}: timesteps {', '.join(f'{one:g}' for one in ladder)} fs are too "
                "close to tell the order of their errors; take twice the one before, or more"
            )
        for ps in self.ps:
            for timestep_fs in self.timesteps_fs:
                self._check_rows(ps, timestep_fs, "a run")
            for timestep_fs in ladder if len(ladder) > 1 else ():
                self._check_rows(min(ps, CONVERGENCE_PS), timestep_fs, "convergence", ps)

    def every(self, ps: float, timestep_fs: float) -> int:
        """Steps between frames of a run of that length."""
        return max(1, round(1e3 * ps / timestep_fs / self.frames))

    def _check_rows(
        self, ps: float, timestep_fs: float, what: str, of_ps: float | None = None
    ) -> None:
        rows = int(1e3 * ps / timestep_fs / self.every(of_ps or ps, timestep_fs) + 1e-6)
        if rows < FEWEST_ROWS:
            raise InputError(
                f"step {self.step}: {what} is told by {FEWEST_ROWS} frames or more, got {rows} in "
                f"{ps:g} ps at {timestep_fs:g} fs; raise frames or ps"
            )


@dataclass(frozen=True)
class Liquid:
    """A periodic box at constant temperature, and at constant pressure; the teacher's own run
    through the same protocol.

    Attributes
    ----------
    step : name of the step.
    box : name of one of the protocol's boxes.
    nvt_ps, npt_ps : lengths; 0 leaves one out.
    replicas : of the NVT run, with seeds of their own: as many of the student as of the teacher.
    teacher_ps : length of each of the teacher's runs; 0 for none. Radial distributions of the
        student are taken over as long a stretch of each replica.
    teacher_thermalise_ps : of the teacher's runs, where a guide does it and it costs little; 0
        takes thermalise_ps.
    burn_in_ps : at the start of each NVT run, of the student and of the teacher (of its hybrid
        Monte Carlo: of the moves' length in all), that radial distributions leave out.
    guide : student on whose trajectories of `move_fs` hybrid Monte Carlo samples the teacher's
        ensemble, in place of the teacher's own MD: `teacher_ps` is then their length in all.
        Radial distributions are taken over all frames after `burn_in_ps`.
    frame_fs : between frames.
    judged : whether the verdict counts the step.
    temperature_K, timestep_fs, thermalise_ps, teacher_frames : as of `Runs`.
    """

    step: str
    box: str
    nvt_ps: float = 10.0
    npt_ps: float = 10.0
    replicas: int = 2
    teacher_ps: float = 0.0
    teacher_thermalise_ps: float = 0.0
    burn_in_ps: float = 0.0
    guide: str = ""
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
            raise InputError(f"step {self.step}: nvt_ps and npt_ps are 0, there is nothing to run")
        for name in ("nvt_ps", "npt_ps"):
            ps = getattr(self, name)
            if ps and 1e3 * ps < FEWEST_ROWS * self.frame_fs:
                raise InputError(
                    f"step {self.step}: a run is told by {FEWEST_ROWS} frames or more, got {name} "
                    f"{ps:g} with one every {self.frame_fs:g} fs"
                )
        of_teacher = self.move_fs if self.guide else self.frame_fs
        for name, frame_fs in (("nvt_ps", self.frame_fs), ("teacher_ps", of_teacher)):
            left_fs = 1e3 * (getattr(self, name) - self.burn_in_ps)
            if self.teacher_ps and self.nvt_ps and left_fs < FEWEST_ROWS * frame_fs:
                raise InputError(
                    f"step {self.step}: burn_in_ps {self.burn_in_ps:g} leaves less than "
                    f"{FEWEST_ROWS} frames of {name} {getattr(self, name):g}, with one every "
                    f"{frame_fs:g} fs"
                )


@dataclass(frozen=True)
class Protocol:
    """What `mlff-student validate` does.

    Attributes
    ----------
    steps : in order.
    name : of the file.
    source : what it was loaded by, for the command that does so again.
    about : what it is for, one paragraph.
    boxes : that steps may name.
    models, engines : what is run where the command names none.
    """

    steps: tuple[Runs | Liquid, ...]
    name: str = ""
    about: str = ""
    boxes: dict[str, Box] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    engines: tuple[str, ...] = ("openmm",)
    source: str = field(default="", repr=False, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 of what is run: the steps and their boxes."""
        return sha256(repr((self.steps, sorted(self.boxes.items()))).encode()).hexdigest()


def protocol_names() -> list[str]:
    """The protocols that come with the package."""
    return sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


def load_protocol(source: str) -> Protocol:
    """Protocol of a name (`protocol_names`) or a YAML file.

    Raises
    ------
    InputError : no such file, or what `read_settings` refuses; numbers that are no run, too few
        frames or too short a run for what is to be measured, nothing to judge; names that no folder
        may have, two steps of one name, unknown boxes or engines.
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
        raise InputError(f"two steps are called {min(twice)!r}")
    for box in protocol.boxes:
        _check_name(box, "box")
    for step in protocol.steps:
        _check_name(step.step, "step")
        if isinstance(step, Liquid):
            check_key([step.box], protocol.boxes, f"step {step.step}, box")
    check_key(protocol.engines, ENGINES, "engines")
    return protocol
