"""Protocols: which runs a model must stand, read from YAML files."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError, check_key
from ..md import ENGINES

PROTOCOLS = Path(__file__).with_name("protocols")


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
    judged_to_K: float = float("inf")
    judged_to_fs: float = float("inf")
    judged_to_atoms: float = float("inf")


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
    guide : student on whose trajectories of `move_fs` hybrid Monte Carlo samples the teacher's
        ensemble, in place of the teacher's own MD: `teacher_ps` is then their length in all.
        Radial distributions are taken over all frames.
    frame_fs : between frames.
    temperature_K, timestep_fs, thermalise_ps, teacher_frames : as of `Runs`.
    """

    step: str
    box: str
    nvt_ps: float = 10.0
    npt_ps: float = 10.0
    replicas: int = 2
    teacher_ps: float = 0.0
    guide: str = ""
    move_fs: float = 40.0
    temperature_K: float = 300.0
    timestep_fs: float = 0.5
    thermalise_ps: float = 2.0
    frame_fs: float = 10.0
    teacher_frames: int = 0


@dataclass(frozen=True)
class Protocol:
    """What `mlff-student validate` does.

    Attributes
    ----------
    name : of the file.
    about : what it is for, one paragraph.
    steps : in order.
    boxes : that steps may name.
    models, engines : what is run where the command names none.
    """

    name: str
    about: str
    steps: tuple[Runs | Liquid, ...]
    boxes: Mapping[str, Box]
    models: tuple[str, ...] = ()
    engines: tuple[str, ...] = ("openmm",)


def protocol_names() -> list[str]:
    """The protocols that come with the package."""
    return sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


def load_protocol(source: str) -> Protocol:
    """Protocol of a name (`protocol_names`) or a YAML file.

    Raises
    ------
    InputError : no such file, unknown keys (the nearest known one is named), or values of the wrong
        kind or out of range.
    """
    path = PROTOCOLS / f"{source}.yaml"
    if not path.is_file():
        path = Path(source)
    if not path.is_file():
        raise InputError(
            f"no protocol {source!r}; known: {', '.join(protocol_names())}, or a YAML file"
        )
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the protocol {path}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("steps"), list):
        raise InputError(f"{path} is no protocol: expected keys about, steps (a list)")
    check_key(content, [f.name for f in fields(Protocol) if f.name != "name"], str(path))
    boxes = {
        name: _read(Box, box, f"{path}, box {name}")
        for name, box in (content.get("boxes") or {}).items()
    }
    steps = tuple(
        _read_step(step, f"{path}, step {k + 1}") for k, step in enumerate(content["steps"])
    )
    names = [step.step for step in steps]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"{path}: two steps are called {min(twice)!r}")
    for step in steps:
        if isinstance(step, Liquid):
            check_key([step.box], boxes, f"{path}, step {step.step}, box")
    engines = tuple(content.get("engines") or ("openmm",))
    check_key(engines, ENGINES, f"{path}, engines")
    return Protocol(
        path.stem,
        str(content.get("about", "")).strip(),
        steps,
        boxes,
        tuple(content.get("models") or ()),
        engines,
    )


def _read_step(content: Any, where: str) -> Runs | Liquid:
    is_liquid = isinstance(content, dict) and "box" in content
    return _read(Liquid if is_liquid else Runs, content, where)


def _read(kind: type, content: Any, where: str) -> Any:
    """A dataclass of a mapping, its numbers checked."""
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected keys and values, found {content!r}")
    known = {field.name: field for field in fields(kind)}
    check_key(content, known, where)
    missing = [n for n, f in known.items() if f.default is MISSING and n not in content]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} is missing")
    values = {
        name: _value(known[name].type, value, f"{where}, {name}") for name, value in content.items()
    }
    return kind(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    if kind in (str, "str"):
        if not isinstance(value, str) or not value:
            raise InputError(f"{where}: expected text, found {value!r}")
        return value
    if kind == tuple[str, ...]:
        entries = value if isinstance(value, list) else [value]
        if not entries:
            raise InputError(f"{where} is empty")
        return tuple(_value(str, one, where) for one in entries)
    if kind == tuple[float, ...]:
        entries = value if isinstance(value, list) else [value]
        if not entries:
            raise InputError(f"{where} is empty")
        return tuple(_value(float, one, where) for one in entries)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise InputError(f"{where}: expected a number that is not negative, found {value!r}")
    if kind is int and value != int(value):
        raise InputError(f"{where}: expected a whole number, found {value!r}")
    return kind(value)
