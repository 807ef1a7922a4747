"""What was built when this package was installed, and the commands that install what is missing."""

import importlib.util
import json
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlff_student.core.paths import PACKAGE, built_library

BUILD_RECORD = "build.json"


def install_command(*arguments: str) -> str:
    """Return the shell command by which this Python environment installs packages.

    Parameters
    ----------
    *arguments : str
        Options and requirements; those that a shell would change are quoted.
    """
    python = shlex.quote(sys.executable)
    pip = shutil.which("pip")
    if pip and Path(pip).parent == Path(sys.executable).parent:
        command = "pip install"
    elif importlib.util.find_spec("pip"):
        command = f"{python} -m pip install"
    else:
        command = f"uv pip install --python {python}"
    return f"{command} {shlex.join(arguments)}"


def build_command() -> str:
    """Return the shell command that builds the compiled parts and installs them again."""
    checkout, editable = _checkout()
    source = [str(checkout)] if checkout else ["--no-binary=mlff-student", "mlff-student"]
    editing = ["--editable"] if editable else []
    return install_command("--no-deps", "--force-reinstall", *editing, *source)


def install_origin() -> str:
    """Return what this package was installed from: a wheel or a folder."""
    checkout, editable = _checkout()
    if checkout:
        return f"{'editable install' if editable else 'built'} from {checkout}"
    return "wheel"


def _checkout() -> tuple[Path | None, bool]:
    """Return the folder that the package was installed from, and whether it is editable.

    A checkout that is in the path of Python without being installed counts as editable.
    """
    try:
        text = metadata.distribution("mlff-student").read_text("direct_url.json") or "{}"
    except metadata.PackageNotFoundError:
        return PACKAGE.parents[1], True
    origin = json.loads(text)
    url = urlsplit(origin.get("url", ""))
    folder = Path(unquote(url.path))
    if url.scheme != "file" or not (folder / "pyproject.toml").is_file():
        return None, False
    return folder, origin.get("dir_info", {}).get("editable", False)


def build_record() -> dict[str, str]:
    """Return the releases that the compiled parts were built for or with.

    Its keys are "lammps", "torch" (for the portable backend of LAMMPS) and "vesin"; a release is
    absent if nothing was built for it.
    """
    return {key: value for key, value in _record().items() if isinstance(value, str)}


def why_missing(part: str) -> str:
    """Return why a compiled part was not built when the package was installed.

    Parameters
    ----------
    part : str
        "native kernels", "torch operators" or "LAMMPS plugin".
    """
    default = "they were not built" if part.endswith("s") else "it was not built"
    return _record().get("missing", {}).get(part, default)


def _record() -> dict:
    path = built_library(BUILD_RECORD)
    return json.loads(path.read_text()) if path.is_file() else {}
