"""Several students in one pair style: their mean moves the atoms, their deviation stops a run."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from ase import Atoms, units
from numpy.typing import NDArray

from mlff_student.core.errors import StudentError
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.lammps.run import element_order, run_lmp, write_data

KCAL_PER_EV = units.mol / units.kcal
SCRIPT = """\
units {units}
read_data point.data
pair_style mlff_student {options}
pair_coeff * * {archives} {elements}
compute deviation all pair mlff_student
fix each all pair 1 mlff_student deviation 1
thermo_style custom step pe c_deviation[*]
thermo_modify norm no
"""
POINT = """\
run 0
write_dump all custom point.dump id fx fy fz f_each modify sort id format float %.15g
print "STATE $(pe:%.15g) $(c_deviation[1]:%.15g) $(c_deviation[2]:%.15g) $(c_deviation[3]:%.15g)"
"""


class Committee(NamedTuple):
    """What its members say, in eV and angstrom."""

    energies: NDArray[np.float64]  # (M,)
    forces: NDArray[np.float64]  # (M, N, 3)

    @property
    def deviations(self) -> NDArray[np.float64]:
        """Of the force on each atom (N,)."""
        differences = self.forces - self.forces.mean(0)
        return np.sqrt(np.square(differences).sum(-1).mean(0))


def ase_committee(atoms: Atoms, archives: list[Path]) -> Committee:
    energies, forces = [], []
    for archive in archives:
        atoms.calc = StudentForceFieldCalculator(archive)
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    return Committee(np.array(energies), np.array(forces))


@pytest.fixture
def committee_script(structures, random_archives, tmp_path):
    """Factory `(unit system, options of the pair style)` of the start of an input script."""
    atoms = structures["triclinic"]

    def make(system: str = "metal", options: str = "") -> str:
        write_data(atoms, tmp_path / "point.data", system)
        return SCRIPT.format(
            units=system,
            options=options,
            archives=" ".join(map(str, random_archives.values())),
            elements=" ".join(element_order(atoms)),
        )

    return make


@pytest.mark.parametrize(
    ("ranks", "system", "options"),
    [
        (1, "metal", ""),
        (3, "metal", "backend native"),
        (2, "real", "committee first"),
        (1, "metal", "backend portable committee first"),
    ],
)
def test_mean_and_deviation(
    ranks, system, options, committee_script, structures, random_archives, tmp_path
):
    script = committee_script(system, options)
    log = run_lmp(script + POINT, tmp_path, "committee", ranks=ranks)
    energy, *summary = map(float, re.findall(r"^STATE (.*)$", log, re.MULTILINE)[-1].split())
    dump = np.loadtxt(tmp_path / "point.dump", skiprows=9)
    forces, each = dump[:, 1:4], dump[:, 4]

    atoms = structures["triclinic"]
    expected = ase_committee(atoms, list(random_archives.values()))
    first = "first" in options
    unit = KCAL_PER_EV if system == "real" else 1.0
    deviations = unit * expected.deviations
    assert deviations.min() > 0.1  # three unlike functions
    # Float32: sums in another order; the portable backend sums more of them in float32.
    close = unit * (3e-5 if "portable" in options else 1e-5)
    moving = unit * (expected.forces[0] if first else expected.forces.mean(0))
    np.testing.assert_allclose(forces, moving, atol=close)
    total = unit * (expected.energies[0] if first else expected.energies.mean())
    assert energy == pytest.approx(total, abs=1e-6 * unit * len(atoms), rel=1e-7)
    np.testing.assert_allclose(each, deviations, atol=close)
    wanted = [deviations.max(), deviations.mean(), unit * expected.energies.std()]
    np.testing.assert_allclose(summary, wanted, atol=close, rtol=1e-6)


@pytest.mark.parametrize("ranks", [1, 2])
def test_fix_halt_ends_a_run_that_leaves_the_domain(
    ranks, committee_script, structures, random_archives, tmp_path
):
    """At the first step whose largest deviation is over the limit, not before."""
    start = ase_committee(structures["triclinic"], list(random_archives.values()))
    limit = 1.02 * start.deviations.max()
    script = committee_script(options="committee first") + (
        "fix motion all nve\ntimestep 0.0001\nvelocity all create 300 7 loop geom\n"
        "variable largest equal c_deviation[1]\n"
        'fix record all print 1 "DEVIATION $(step) $(v_largest)"\n'
        f"fix guard all halt 1 v_largest > {limit} error continue\n"
        "run 200\n"
    )
    log = run_lmp(script, tmp_path, "halt", ranks=ranks)
    record = np.array(re.findall(r"^DEVIATION (\d+) (\S+)$", log, re.MULTILINE), float)
    assert 3 <= len(record) < 200
    assert (record[:-1, 1] <= limit).all()
    assert record[-1, 1] > limit
    assert "Fix halt condition for fix-id guard met" in log


def test_one_model_has_no_deviation(structures, tiny_archive, tmp_path):
    atoms = structures["water_box"]
    write_data(atoms, tmp_path / "point.data")
    script = SCRIPT.format(units="metal", options="", archives=tiny_archive, elements="H O")
    with pytest.raises(StudentError, match="cannot extract deviation_flag"):
        run_lmp(script, tmp_path, "alone")
    without_fix = script.replace("fix each all pair", "# ").replace("[*]", "[1]")
    with pytest.raises(StudentError, match="deviation does not compute a vector"):
        run_lmp(without_fix + "run 0\n", tmp_path, "alone")
