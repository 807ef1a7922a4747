"""Write README.md of this folder: run every example, or those named, and show what they print.

python examples/show.py                     # half an hour, the most of it distillation
python examples/show.py batch nve_ase
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ORDER = (
    "single_point optimize_water nve_ase batch student_and_teacher openmm_vacuum openmm_mixed "
    "lammps_nvt drift_of_a_dcd distil_molecule screen_conformers"
).split()
HEAD = """\
# Examples

Short scripts to copy. What each prints is below it; the tests run it with `--short` where that
takes long. `demo.py` is what `make demo` runs. This page is written by `python examples/show.py`.
"""


def command_of(name: str) -> str:
    """How a user starts an example."""
    lammps = (HERE / name).is_dir()
    return f"bash examples/{name}/run.sh" if lammps else f"python examples/{name}.py"


def section(name: str, printed: str) -> str:
    """What is said of an example, with its figures copied to this folder."""
    script = HERE / f"{name}.py"
    summary = "A box of 64 water molecules at constant temperature in LAMMPS, on two ranks."
    if script.exists():
        summary = (ast.get_docstring(ast.parse(script.read_text())) or "").splitlines()[0]
    shown = [f"    {line}".rstrip() for line in printed.strip("\n").splitlines()]
    figures = []
    for path in map(Path, re.findall(r"wrote (\S+\.png)", printed)):
        shutil.copy(path, HERE / path.name)
        figures.append(f"\n![{name}]({path.name})\n")
    text = "\n".join(shown)
    return f"\n## {summary.rstrip('.')}\n\n    {command_of(name)}\n\n{text}\n{''.join(figures)}"


def run(name: str) -> str:
    """Standard output of an example."""
    words = command_of(name).split()
    words[0] = sys.executable if words[0] == "python" else words[0]
    print(command_of(name), flush=True)
    environment = os.environ | {"COLUMNS": "100"}
    result = subprocess.run(
        words, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    table = re.search(
        r"(?s) +Step +.*Loop time [^\n]*", result.stdout
    )  # of LAMMPS, the rest left out
    return table.group() if table else result.stdout


def main(names: list[str]) -> None:
    """Run these and keep what the page says of the others; all if there are no names."""
    if unknown := set(names) - set(ORDER):
        sys.exit(f"no example {', '.join(sorted(unknown))}; there are {', '.join(ORDER)}")
    page = HERE / "README.md"
    _, *known = re.split(r"(?m)^(?=## )", page.read_text())
    sections = ["\n" + one.rstrip("\n") + "\n" for one in known]
    for name in names or ORDER:
        sections[ORDER.index(name)] = section(name, run(name))
    page.write_text(HEAD + "".join(sections))


if __name__ == "__main__":
    main(sys.argv[1:])
