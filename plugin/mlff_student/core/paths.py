"""Find the files of this package in a checkout, an editable install or a wheel."""

import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def in_checkout_or_package(checkout: str, package: str) -> tuple[Path, Path]:
    """Return the two places where a folder of data may be, without checking that they exist.

    Parameters
    ----------
    checkout : str
        Folder relative to the top of a checkout.
    package : str
        Folder relative to the package `mlff_student`.

    Returns
    -------
    tuple[Path, Path]
        The folder in a checkout, and the folder in an installed package.
    """
    return PACKAGE.parents[1] / checkout, PACKAGE / package


def built_library(name: str) -> Path:
    """Return the path of a library that CMake built; the file need not exist.

    An editable install has the sources in one folder and the built files in another.

    Parameters
    ----------
    name : str
        File name of the library.
    """
    places = [Path(folder) / "lib" / name for folder in sys.modules["mlff_student"].__path__]
    return next((path for path in places if path.is_file()), PACKAGE / "lib" / name)
