"""The demo, shortened: what a newcomer sees first."""

import json
import os
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_demo(tmp_path):
    output = tmp_path / "demo"
    result = subprocess.run(
        [sys.executable, str(DEMO), "--ps", "2", "--model", "tiny", "--output", str(output)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "120"},  # wide enough that the table does not wrap
    )
    # Long enough for the drift: its standard error is about 0.01 meV/atom/ps, the bar 0.05.
    assert result.returncode == 0, result.stdout + result.stderr
    for word in ("energy drift", "ms/step", "difference from ASE", "verdict"):
        assert word in result.stdout
    for engine in ("openmm", "lammps"):
        for name in ("run.dcd", "run.pdb", "run.csv", "run.json"):
            assert (output / engine / name).stat().st_size > 0
    assert (output / "drift.png").read_bytes().startswith(b"\x89PNG")
    records = json.loads((output / "demo.json").read_text())["results"]
    assert [record["engine"] for record in records] == ["openmm", "lammps"]
    for record in records:
        assert record["atoms"] == 22
        # The same archive in float32: what is left is the engines' conversion of units.
        assert record["energy_parity_ev_per_atom"] < 1e-6
        assert record["force_parity_ev_per_angstrom"] < 1e-5
