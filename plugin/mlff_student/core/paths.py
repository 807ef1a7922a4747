"""Where the files of this package are: in a checkout, an editable install or a wheel."""

import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def in_checkout_or_package(checkout: str, package: str) -> tuple[Path, Path]:
    """Where a folder of data may be: at the top of a checkout, or inside the installed package.

    Parameters
    ----------
    checkout : str
        Folder below the top of the checkout.
    package : str
        Folder below the package.
    """
    return PACKAGE.parents[1] / checkout, PACKAGE / package


def built_library(name: str) -> Path:
    """File that CMake built, which need not exist.

    An editable install has the sources in one folder and what CMake built in another.
    """
    places = [Path(folder) / "lib" / name for folder in sys.modules["mlff_student"].__path__]
    return next((path for path in places if path.is_file()), PACKAGE / "lib" / name)
