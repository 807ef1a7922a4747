"""Teachers by name: each is an ASE calculator with energy (eV) and forces (eV/angstrom)."""

from ase.calculators.calculator import Calculator

from .errors import InputError, MissingDependencyError

XTB_METHODS = {"gfn2-xtb": "GFN2-xTB", "gfn1-xtb": "GFN1-xTB"}


def make_teacher(name: str) -> Calculator:
    """Calculator of a named teacher.

    Parameters
    ----------
    name : "gfn2-xtb" or "gfn1-xtb" (Bannwarth et al. 2019, doi:10.1021/acs.jctc.8b01176), run by
        the tblite library.

    Raises
    ------
    InputError : the name is not known.
    MissingDependencyError : the library behind it is not installed.
    """
    if name not in XTB_METHODS:
        raise InputError(f"unknown teacher {name!r}; known: {', '.join(XTB_METHODS)}")
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise MissingDependencyError(
            f"teacher {name!r} needs tblite: pip install 'mlff-student[distill]'"
        ) from error
    return TBLite(method=XTB_METHODS[name], verbosity=0)
