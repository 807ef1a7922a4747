"""Write the examples page of the documentation from what the examples print.

It runs every example, or the examples whose names are given.

python examples/show.py                     # half an hour, most of it for distillation
python examples/show.py batch nve_ase
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
PAGES = HERE.parent / "docs" / "pages"
PAGE = PAGES / "using" / "examples.md"
ORDER = (
    "single_point optimize_water nve_ase batch student_and_teacher openmm_vacuum openmm_mixed "
    "lammps_nvt drift_of_a_dcd distil_molecule screen_conformers"
).split()
HEAD = """\
# Examples

This page shows short scripts to copy, each with what it prints. They are in the folder `examples/`.
`make demo` runs `examples/demo.py`. The page is written by `python examples/show.py`.
"""
COLOURS = 64  # in a figure of the page; few colours keep the file small


def command_of(name: str) -> str:
    """Return the command that starts an example."""
    lammps = (HERE / name).is_dir()
    return f"bash examples/{name}/run.sh" if lammps else f"python examples/{name}.py"


def section(name: str, printed: str) -> str:
    """Return the section of an example, and copy its figures into the documentation."""
    script = HERE / f"{name}.py"
    summary = "Simulate a box of 64 water molecules at constant temperature in LAMMPS on two ranks."
    if script.exists():
        summary = (ast.get_docstring(ast.parse(script.read_text())) or "").splitlines()[0]
    lines = [line.rstrip() for line in printed.strip("\n").splitlines()]
    figures = []
    for path in map(Path, re.findall(r"wrote (\S+\.png)", printed)):
        small = Image.open(path).convert("RGB").quantize(COLOURS)
        small.save(PAGES / "images" / path.name, optimize=True)
        figures.append(f"\n![Figure of {name}](../images/{path.name})\n")
    text = "\n".join(lines)
    return (
        f"\n## {summary.rstrip('.')}\n\n```bash\n{command_of(name)}\n```\n\n"
        f"```text\n{text}\n```\n{''.join(figures)}"
    )


def run(name: str) -> str:
    """Run an example and return what it prints."""
    words = command_of(name).split()
    words[0] = sys.executable if words[0] == "python" else words[0]
    print(command_of(name), flush=True)
    environment = os.environ | {"COLUMNS": "100"}
    result = subprocess.run(
        words, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    # Only the table of the output of LAMMPS is shown.
    table = re.search(r"(?s) +Step +.*Loop time [^\n]*", result.stdout)
    return table.group() if table else result.stdout


def main(names: list[str]) -> None:
    """Run these examples and keep the sections of the others; run all if there are no names."""
    if unknown := set(names) - set(ORDER):
        sys.exit(f"unknown example {', '.join(sorted(unknown))}; known: {', '.join(ORDER)}")
    _, *known = re.split(r"(?m)^(?=## )", PAGE.read_text())
    sections = ["\n" + text.rstrip("\n") + "\n" for text in known]
    for name in names or ORDER:
        sections[ORDER.index(name)] = section(name, run(name))
    PAGE.write_text(HEAD + "".join(sections))


if __name__ == "__main__":
    main(sys.argv[1:])
