"""Protocols: which runs a model must stand, read from YAML files."""

from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from ..errors import InputError, check_key
from ..md import ENGINES
from ..settings import read_settings

PROTOCOLS = Path(__file__).with_name("protocols")
SPECTRUM_FRAME_FS = 4.0  # resolves the O-H stretch


def _refuse_negative(step: "Box | Runs | Liquid") -> None:
    for name, value in asdict(step).items():
        for one in value if isinstance(value, tuple) else (value,):
            if not isinstance(one, str) and not one >= 0:
                raise InputError(f"{name} must not be negative, got {one}")


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

    __post_init__ = _refuse_negative


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
        _refuse_negative(self)
        frame_fs = 1e3 * max(self.ps) / max(1, self.frames)
        if self.spectrum_teacher_ps and frame_fs > SPECTRUM_FRAME_FS:
            raise InputError(
                f"step {self.step}: a spectrum needs a frame every {SPECTRUM_FRAME_FS:g} fs, got "
                f"one every {frame_fs:g}; raise frames"
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
        _refuse_negative(self)
        for name in ("nvt_ps", "teacher_ps"):
            if self.teacher_ps and self.nvt_ps and getattr(self, name) <= self.burn_in_ps:
                raise InputError(
                    f"step {self.step}: burn_in_ps {self.burn_in_ps:g} leaves nothing of {name} "
                    f"{getattr(self, name):g}"
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
    InputError : no such file, or what `read_settings` refuses; negative numbers, two steps of one
        name, unknown boxes or engines.
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
    for step in protocol.steps:
        if isinstance(step, Liquid):
            check_key([step.box], protocol.boxes, f"step {step.step}, box")
    check_key(protocol.engines, ENGINES, "engines")
    return protocol
