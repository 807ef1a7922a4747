"""Make teachers by name: ASE calculators with energy (eV) and forces (eV/angstrom)."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from ase.calculators.calculator import Calculator

from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.teachers.labelled import LabelledFile
from mlff_student.teachers.neutral import neutral_by_default
from mlff_student.teachers.orb import orb_calculator


class Teacher(NamedTuple):
    """How to make a named teacher, and a description of its labels.

    Attributes
    ----------
    factory : str
        Class or function as "module:attribute"; it is imported when the teacher is made.
    arguments : dict[str, Any]
        Arguments of the factory.
    package : str
        Package in the form that pip installs.
    description : str
        Method and elements, in words.
    source : str
        Publication.
    licence : str
        Licence of the parameters or weights.
    cache : str
        Folder that downloaded weights are kept in; empty if nothing is downloaded.
    finish : Callable[[Any], Calculator] or None
        Function that makes a calculator from the factory's return value; None if that is one.
    neutral_only : bool
        Whether the teacher takes every structure as neutral and ignores the charge in `atoms.info`.
    """

    factory: str
    arguments: dict[str, Any]
    package: str
    description: str
    source: str
    licence: str
    cache: str = ""
    finish: Callable[[Any], Calculator] | None = None
    neutral_only: bool = False


# No torch.compile, which needs a C++ compiler and some minutes, and no TF32, for exact labels.
_ORB = {"precision": "float32-highest", "compile": False}

TEACHERS = {
    "gfn2-xtb": Teacher(
        "mlff_student.teachers.xtb:XTB",
        {"method": "GFN2-xTB", "verbosity": 0},
        "'mlff-student[distill]'",
        "semi-empirical tight binding, elements up to radon, offline",
        "Bannwarth et al. 2019, doi:10.1021/acs.jctc.8b01176",
        "LGPL-3.0-or-later",
    ),
    "so3lr": Teacher(
        "mlff_student.teachers.so3lr:SO3LR",
        {},
        "'mlff-student[so3lr]'",
        "near PBE0+MBD; molecules and liquids of H C N O F P S Cl, offline",
        "Kabylda et al. 2025, doi:10.1021/jacs.5c09558",
        "MIT",
    ),
    "so3lr-float32": Teacher(
        "mlff_student.teachers.so3lr:SO3LR",
        {"dtype": "float32"},
        "'mlff-student[so3lr]'",
        "the same in half the time; forces differ by less than 1e-4 eV/angstrom",
        "Kabylda et al. 2025, doi:10.1021/jacs.5c09558",
        "MIT",
    ),
    "gfn1-xtb": Teacher(
        "mlff_student.teachers.xtb:XTB",
        {"method": "GFN1-xTB", "verbosity": 0},
        "'mlff-student[distill]'",
        "semi-empirical tight binding, elements up to radon, offline",
        "Grimme et al. 2017, doi:10.1021/acs.jctc.7b00118",
        "LGPL-3.0-or-later",
    ),
    "orb-v2": Teacher(
        "orb_models.forcefield.pretrained:orb_v2",
        _ORB,
        "'orb-models>=0.5.5'",
        "PBE crystals; the forces are not the gradient of the energy, so that MD drifts",
        "Neumann et al. 2024, arXiv:2410.22570",
        "Apache-2.0",
        "~/.cache/cached_path",
        orb_calculator,
        neutral_only=True,
    ),
    "orb-v3": Teacher(
        "orb_models.forcefield.pretrained:orb_v3_conservative_omol",
        _ORB,
        "'orb-models>=0.5.5'",
        "wB97M-V/def2-TZVPD molecules (OMol25), conservative, no stress",
        "Rhodes et al. 2025, arXiv:2504.06231; Levine et al. 2025, arXiv:2505.08762",
        "Apache-2.0",
        "~/.cache/cached_path",
        orb_calculator,
    ),
    "mace-off": Teacher(
        "mace.calculators:mace_off",
        {"model": "medium", "default_dtype": "float64"},
        "'mace-torch>=0.3.10'",
        "wB97M-D3(BJ)/def2-TZVPPD organic molecules (MACE-OFF23 medium)",
        "Kovacs et al. 2023, arXiv:2312.15211",
        "Academic Software License: no commercial use",
        "~/.cache/mace",
        neutral_only=True,
    ),
    "mace-mp": Teacher(
        "mace.calculators:mace_mp",
        {"model": "medium-mpa-0", "default_dtype": "float64"},
        "'mace-torch>=0.3.10'",
        "PBE+U crystals, 89 elements (MACE-MPA-0 medium)",
        "Batatia et al. 2023, arXiv:2401.00096",
        "MIT",
        "~/.cache/mace",
        neutral_only=True,
    ),
    "aimnet2": Teacher(
        "aimnet.calculators:AIMNet2ASE",
        {"base_calc": "aimnet2", "charge": 0, "mult": 1},
        "'aimnet[ase]>=0.2'",
        "wB97M-D3/def2-TZVPP molecules of 14 elements",
        "Anstine et al. 2025, doi:10.1039/D4SC08572H",
        "MIT",
        "~/.cache/aimnet",
        neutral_by_default,
    ),
}


def teacher_names() -> tuple[str, ...]:
    """Return the names of `TEACHERS` and an example of each other form of a teacher's name."""
    return *TEACHERS, "file:labels.extxyz", "python:package.module:factory"


def is_teacher(name: str) -> bool:
    """Return whether a name has one of the forms that `make_teacher` accepts.

    Parameters
    ----------
    name : str
        Name to check; it need not be that of an existing file or module.
    """
    return name in TEACHERS or name.startswith(("file:", "python:"))


def reads_charge(name: str) -> bool:
    """Return whether a teacher reads the charge and the multiplicity that a structure states.

    Parameters
    ----------
    name : str
        Name of a teacher. Those of a file and of the user are trusted to do so.
    """
    return name not in TEACHERS or not TEACHERS[name].neutral_only


def make_teacher(name: str) -> Calculator:
    """Make the ASE calculator of a teacher, for neutral closed-shell structures.

    Parameters
    ----------
    name : str
        A key of `TEACHERS`; `file:PATH` for the labels of a file (`LabelledFile`), or
        `file:PATH#METHOD` for those of a method, such as "ccsd" of `ccsd_energy`; or
        `python:MODULE:FACTORY`, where FACTORY is called without arguments and returns a calculator.

    Raises
    ------
    InputError
        The name is unknown, the file cannot be used, the factory fails, or its calculator does not
        compute energy and forces.
    MissingDependencyError
        The teacher's package cannot be imported, or its weights cannot be downloaded.
    """
    kind, _, target = name.partition(":")
    if kind == "file" and target:
        path, _, method = target.rpartition("#")
        if path and not Path(target).expanduser().exists():
            return LabelledFile(Path(path).expanduser(), method)
        return LabelledFile(Path(target).expanduser())
    if kind == "python":
        return _checked(name, _user_calculator(name, target))
    if name not in TEACHERS:
        near = get_close_matches(name.lower(), TEACHERS, 1)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        raise InputError(f"unknown teacher {name!r}{hint} known: {', '.join(teacher_names())}")
    return _checked(name, _named_calculator(name, TEACHERS[name]))


def load_attribute(path: str) -> Any:
    """Import a module and return one of its attributes.

    Parameters
    ----------
    path : str
        "module:attribute".

    Raises
    ------
    ImportError
        The module cannot be imported.
    AttributeError
        The module has no such attribute.
    """
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def _named_calculator(name: str, teacher: Teacher) -> Calculator:
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results, and libraries print on import
            made = load_attribute(teacher.factory)(**teacher.arguments)
            return teacher.finish(made) if teacher.finish else made
    except (ImportError, AttributeError) as error:  # not installed, or too old
        raise MissingDependencyError(
            f"teacher {name!r} needs: pip install {teacher.package} ({error})"
        ) from error
    except (OSError, RuntimeError) as error:
        if not teacher.cache:
            raise
        raise MissingDependencyError(
            f"the weights of teacher {name!r} could not be loaded "
            f"({type(error).__name__}: {shorten(str(error), 150)}). They are downloaded at the "
            f"first use: use the teacher once on a machine with internet, then copy "
            f"{teacher.cache} from there"
        ) from error


def _user_calculator(name: str, target: str) -> Calculator:
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise InputError(f"teacher {name!r} is incomplete: expected python:package.module:factory")
    try:
        factory = load_attribute(target)
    except ImportError as error:
        raise MissingDependencyError(
            f"teacher {name!r}: cannot import {module} ({error}); install it, or add its folder to "
            "PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise InputError(f"teacher {name!r}: {error}") from error
    try:
        return factory()
    except Exception as error:  # it is the user's code
        raise InputError(
            f"teacher {name!r}: {attribute}(), called without arguments, raised "
            f"{type(error).__name__}: {error}"
        ) from error


def _checked(name: str, calculator: Any) -> Calculator:
    """Return `calculator`, after checking that it computes energy and forces."""
    offered = getattr(calculator, "implemented_properties", ())
    if not {"energy", "forces"} <= set(offered):
        raise InputError(
            f"teacher {name!r}: expected an ASE calculator with energy and forces, found "
            f"{type(calculator).__name__} with {', '.join(offered) or 'no properties'}"
        )
    return calculator
