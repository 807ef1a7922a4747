"""Students as potentials of openmm-ml: mixed systems against their parts, options, imports."""

import copy
import re
import subprocess
import sys
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openmm
import pytest
from ase import Atoms
from numpy.typing import NDArray
from openmm import app, unit
from openmm_contexts import context_at, energy_of, forces_of
from openmmml import MLPotential

from mlff_student.core.errors import InputError
from mlff_student.core.units import KB, KJ_PER_MOL, NM
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.structures.reading import read_structure
from openmm_integration import create_system, load_structure

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "using" / "openmm.md"
DIPEPTIDE = Path(__file__).parents[2] / "examples" / "alanine_dipeptide.pdb"
# Names that the force fields of OpenMM know, and where in the file the atom is.
RESIDUES = {
    "ACE": {"CH3": 0, "C": 1, "O": 2, "H1": 10, "H2": 11, "H3": 12},
    "ALA": {
        "N": 3, "CA": 4, "CB": 5, "C": 6, "O": 7,
        "H": 13, "HA": 14, "HB1": 15, "HB2": 16, "HB3": 17,
    },
    "NME": {"N": 8, "C": 9, "H": 18, "H1": 19, "H2": 20, "H3": 21},
}  # fmt: skip
SOLUTE = list(range(22))
WATERS = {"tip3p": "amber14/tip3p.xml", "tip4pew": "amber14/tip4pew.xml"}


class Solution(NamedTuple):
    """Alanine dipeptide, with or without a box of water, and its force field."""

    topology: app.Topology
    positions: unit.Quantity  # (N, 3)
    force_field: app.ForceField

    def mm_system(self, **options) -> openmm.System:
        """All of it by the force field; in vacuum unless told."""
        return self.force_field.createSystem(self.topology, **options)


@cache
def solution(water: str, padding_nm: float = 0.0) -> Solution:
    """The dipeptide, in a box of water where there is padding."""
    force_field = app.ForceField("amber14-all.xml", WATERS[water])
    atoms = read_structure(str(DIPEPTIDE)).atoms
    topology, order = app.Topology(), []
    chain = topology.addChain()
    for residue_name, places in RESIDUES.items():
        residue = topology.addResidue(residue_name, chain)
        for name, place in places.items():
            topology.addAtom(name, app.Element.getBySymbol(atoms.symbols[place]), residue)
            order.append(place)
    topology.createStandardBonds()
    modeller = app.Modeller(topology, atoms.positions[order] * unit.angstrom)
    if padding_nm:
        modeller.addSolvent(force_field, model=water, padding=padding_nm * unit.nanometer)
    return Solution(modeller.topology, modeller.positions, force_field)


COULOMB = 138.935456  # kJ nm/mol/e^2, as openmm-ml has it
PME = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.7 * unit.nanometer}


def student_energy(archive: Path, symbols: list[str], positions: NDArray[np.float64]) -> float:
    """Energy of atoms in vacuum, positions (N, 3) in nm; kJ/mol."""
    atoms = Atoms(symbols, positions=positions * NM)
    return StudentForceFieldCalculator(archive).get_potential_energy(atoms) / KJ_PER_MOL


@pytest.fixture(scope="module")
def potential(tiny_archive64) -> MLPotential:
    """The random tiny student, float64."""
    return MLPotential("mlff-student", modelPath=str(tiny_archive64))


@pytest.mark.parametrize("name", ["original", "tiny", "ultra_tiny"])
def test_shipped_models_are_registered(name):
    topology, positions = load_structure("CCO")
    system = MLPotential(f"mlff-student-{name}").createSystem(topology)
    assert energy_of(context_at(system, positions)) == pytest.approx(
        energy_of(context_at(create_system(topology, name), positions)), rel=1e-12
    )


@pytest.mark.parametrize("interface", ["TorchForce", "PythonForce"])
def test_create_system(interface, potential, tiny_archive64):
    topology, positions = load_structure("CCO")
    system = potential.createSystem(topology, removeCMMotion=False, interface=interface)
    plain = create_system(topology, tiny_archive64)
    assert energy_of(context_at(system, positions)) == pytest.approx(
        energy_of(context_at(plain, positions)), rel=1e-12
    )
    assert system.getNumForces() == 1
    assert isinstance(system.getForce(0), openmm.PythonForce) == (interface == "PythonForce")
    masses = [system.getParticleMass(k) for k in range(topology.getNumAtoms())]
    assert masses == [plain.getParticleMass(k) for k in range(topology.getNumAtoms())]


@pytest.mark.parametrize("water", WATERS)
def test_mixed_system_is_the_sum_of_its_parts(water, potential, tiny_archive64):
    """Without cutoff: E = E_MM(all) - E_MM(solute) + E_student(solute), and so do the forces."""
    everything, alone = solution(water, 0.3), solution(water)
    positions = everything.positions
    mixed = potential.createMixedSystem(everything.topology, everything.mm_system(), SOLUTE)
    contexts = [
        context_at(system, positions[: system.getNumParticles()])
        for system in (
            mixed,
            everything.mm_system(),
            alone.mm_system(),
            create_system(alone.topology, tiny_archive64),
        )
    ]
    energy, total_mm, solute_mm, solute_ml = map(energy_of, contexts)
    assert energy == pytest.approx(total_mm - solute_mm + solute_ml, rel=1e-10)
    forces, expected, solute_mm, solute_ml = map(forces_of, contexts)
    expected[SOLUTE] += solute_ml - solute_mm
    # Water touches the solute here: clashes of 1e7 kJ/mol/nm, rounded at the 15th digit.
    np.testing.assert_allclose(forces, expected, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("water", "options", "platform", "tolerance"),
    [
        # openmm-ml writes Coulomb's constant to nine digits.
        ("tip3p", {}, "Reference", 1e-4),
        # It counts pairs of the ML region that are beyond the cutoff, which MM does not.
        ("tip3p", PME, "Reference", 2e-2),
        ("tip4pew", PME, "Reference", 2e-2),
        # Forces and grid in float32: 1e-7 of energies of 1e5 kJ/mol, for each of some terms.
        ("tip3p", PME, "CPU", 0.3),
        ("tip4pew", PME, "CPU", 0.3),
    ],
)
def test_interpolation(water, options, platform, tolerance, potential):
    """Lambda 0 is the MM system, 1 the mixed one; linear between, and the derivative says so."""
    box = solution(water, 0.6)
    mm_system = box.mm_system(**options)
    expected = {
        0.0: energy_of(context_at(mm_system, box.positions, platform)),
        1.0: energy_of(
            context_at(
                potential.createMixedSystem(box.topology, mm_system, SOLUTE),
                box.positions,
                platform,
            )
        ),
    }
    expected[0.3] = 0.7 * expected[0.0] + 0.3 * expected[1.0]
    system = potential.createMixedSystem(box.topology, mm_system, SOLUTE, interpolate=True)
    context = context_at(system, box.positions, platform)
    slope = expected[1.0] - expected[0.0]
    for value, energy in expected.items():
        context.setParameter("lambda_interpolate", value)
        assert energy_of(context) == pytest.approx(energy, abs=tolerance)  # kJ/mol
        state = context.getState(parameterDerivatives=True)
        derivative = state.getEnergyParameterDerivatives()["lambda_interpolate"]
        assert derivative == pytest.approx(slope, abs=tolerance)


def test_interpolation_with_a_cutoff_and_reaction_field(potential):
    """Of openmm-ml 1.8, with any potential: at lambda 0 a system with CutoffPeriodic is not the MM
    system. Its setupNonbonded (embeddings/utilities.py) gives the ML region's pairs back as bonds
    with the Coulomb energy of vacuum, to any distance, where MM has a reaction field and a cutoff.
    """
    box = solution("tip3p", 0.6)
    cutoff, dielectric = 0.7, 78.3  # nm; OpenMM's default for the reaction field
    mm_system = box.mm_system(
        nonbondedMethod=app.CutoffPeriodic, nonbondedCutoff=cutoff * unit.nanometer
    )
    (nonbonded,) = (one for one in mm_system.getForces() if isinstance(one, openmm.NonbondedForce))
    nonbonded.setUseDispersionCorrection(False)
    nonbonded.setReactionFieldDielectric(dielectric)
    exceptions = (nonbonded.getExceptionParameters(k) for k in range(nonbonded.getNumExceptions()))
    excepted = {frozenset(one[:2]) for one in exceptions}
    edges = np.diag(box.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))
    krf = (dielectric - 1.0) / (2.0 * dielectric + 1.0) / cutoff**3
    crf = 3.0 * dielectric / (2.0 * dielectric + 1.0) / cutoff
    expected = 0.0
    for first, second in combinations(SOLUTE, 2):
        if frozenset((first, second)) in excepted:
            continue
        (q1, sigma1, epsilon1), (q2, sigma2, epsilon2) = (
            [one._value for one in nonbonded.getParticleParameters(k)] for k in (first, second)
        )
        vector = (box.positions[first] - box.positions[second])._value
        r = np.linalg.norm(vector - edges * np.round(np.array(vector) / edges))
        power = (0.5 * (sigma1 + sigma2) / r) ** 6
        given = COULOMB * q1 * q2 / r + 4 * np.sqrt(epsilon1 * epsilon2) * (power**2 - power)
        field = COULOMB * q1 * q2 * (krf * r * r - crf)
        expected += -field if r < cutoff else given
    system = potential.createMixedSystem(box.topology, mm_system, SOLUTE, interpolate=True)
    context = context_at(system, box.positions)
    context.setParameter("lambda_interpolate", 0.0)
    deviation = energy_of(context) - energy_of(context_at(mm_system, box.positions))
    assert abs(expected) > 10.0
    assert deviation == pytest.approx(expected, abs=1e-2)


def test_forces_while_interpolating(potential):
    """Central differences of the energy along random directions, at lambda 0.3."""
    box = solution("tip3p", 0.3)
    system = potential.createMixedSystem(box.topology, box.mm_system(), SOLUTE, interpolate=True)
    context = context_at(system, box.positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=50)  # off the clashes
    context.setParameter("lambda_interpolate", 0.3)
    assert_forces_are_the_slope(context)


def assert_forces_are_the_slope(context: openmm.Context) -> None:
    positions = context.getState(positions=True).getPositions(asNumpy=True)
    positions = positions.value_in_unit(unit.nanometer)
    system = context.getSystem()
    free = [not system.isVirtualSite(k) for k in range(len(positions))]
    forces = forces_of(context)
    rng = np.random.default_rng(5)
    step = 1e-5  # nm
    for _ in range(3):
        direction = rng.standard_normal(positions.shape) * np.array(free)[:, None]
        energies = []
        for sign in (1, -1):
            context.setPositions(positions + sign * step * direction)
            context.computeVirtualSites()
            energies.append(energy_of(context))
        expected = -np.sum(forces * direction)
        assert (energies[0] - energies[1]) / (2 * step) == pytest.approx(
            expected, abs=1e-5 * np.linalg.norm(forces)
        )


@pytest.mark.parametrize("interpolate", [False, True])
def test_link_atoms(interpolate, potential, tiny_archive64):
    """A bond that the border cuts is capped with a hydrogen, on which the student's force acts."""
    molecule = solution("tip3p")
    region = [atom.index for atom in molecule.topology.atoms() if atom.residue.name == "ACE"]
    info = potential.createMixedSystem(
        molecule.topology,
        molecule.mm_system(),
        region,
        forceGroup=2,
        interpolate=interpolate,
        returnInfo=True,
        linkAtomDistances=[(1, 6, 0.105 * unit.nanometer)],  # carbonyl C, and N of the ALA
    )
    system = info["system"]
    assert system.getNumParticles() == info["topology"].getNumAtoms() == 23
    assert info["oldToNew"] == SOLUTE
    context = context_at(system, molecule.positions)
    positions = context.getState(positions=True).getPositions(asNumpy=True)._value
    assert np.linalg.norm(positions[22] - positions[1]) == pytest.approx(0.105)
    symbols = [atom.element.symbol for atom in info["topology"].atoms()]
    capped = [*region, 22]
    if not interpolate:  # else the student is inside the CustomCVForce
        energy = context.getState(energy=True, groups={2}).getPotentialEnergy()._value
        assert energy == pytest.approx(
            student_energy(tiny_archive64, [symbols[k] for k in capped], positions[capped]),
            rel=1e-10,
        )
    assert_forces_are_the_slope(context)


def test_constraints_go_from_the_ml_region_alone(potential):
    box = solution("tip3p", 0.3)
    mm_system = box.mm_system(constraints=app.HBonds)

    def constrained(system: openmm.System) -> list[tuple[int, int]]:
        pairs = (system.getConstraintParameters(k)[:2] for k in range(system.getNumConstraints()))
        return [tuple(sorted(pair)) for pair in pairs]

    before = constrained(mm_system)
    assert sum(pair[1] < 22 for pair in before) == 12  # the solute's hydrogens
    mixed = potential.createMixedSystem(box.topology, mm_system, SOLUTE)
    assert constrained(mixed) == [pair for pair in before if pair[0] >= 22]
    kept = potential.createMixedSystem(box.topology, mm_system, SOLUTE, removeConstraints=False)
    assert constrained(kept) == before


def test_generator_of_atoms(potential):
    box = solution("tip3p", 0.3)
    energies = [
        energy_of(
            context_at(
                potential.createMixedSystem(box.topology, box.mm_system(), atoms), box.positions
            )
        )
        for atoms in (SOLUTE, (k for k in SOLUTE))
    ]
    assert energies[0] == energies[1]


def test_virtual_sites_stay_as_they_were(potential):
    """The topology that comes back has its TIP4P sites and its box, and so has the user's own."""
    box = solution("tip4pew", 0.6)
    sites = [atom.index for atom in box.topology.atoms() if atom.element is None]
    assert sites
    info = potential.createMixedSystem(box.topology, box.mm_system(**PME), SOLUTE, returnInfo=True)
    for topology in (info["topology"], box.topology):
        assert [atom.index for atom in topology.atoms() if atom.element is None] == sites
        assert topology.getPeriodicBoxVectors() is not None
    assert all(info["system"].isVirtualSite(site) for site in sites)


@pytest.mark.parametrize("interpolate", [False, True])
@pytest.mark.parametrize("periodic", [False, True])
def test_box_of_the_student_is_that_of_the_mm_part(periodic, interpolate, potential):
    """Also where the topology has a box that the MM part ignores, or none where it has one."""
    box = solution("tip3p", 0.6)
    mm_system = box.mm_system(**PME if periodic else {})
    topology = copy.deepcopy(box.topology)
    if periodic:
        topology.setPeriodicBoxVectors(None)
    mixed = potential.createMixedSystem(topology, mm_system, SOLUTE, interpolate=interpolate)
    kind = openmm.CustomCVForce if interpolate else openmm.PythonForce
    (force,) = (one for one in mixed.getForces() if isinstance(one, kind))
    if interpolate:
        force = force.getCollectiveVariable(0)
    assert force.usesPeriodicBoundaryConditions() == periodic


def test_interpolation_takes_no_torch_force(potential):
    """Whose copy through XML would end the process: refused where asked for, avoided by "auto"."""
    molecule = solution("tip3p")
    mm_system = molecule.mm_system()

    def mixed(system: openmm.System, **options) -> openmm.System:
        return potential.createMixedSystem(molecule.topology, system, SOLUTE, **options)

    with pytest.raises(InputError, match="interpolate=True with interface='TorchForce'"):
        mixed(mm_system, interpolate=True, interface="TorchForce")
    system = mixed(mm_system, interpolate=True, interface="auto")
    (force,) = (one for one in system.getForces() if isinstance(one, openmm.CustomCVForce))
    kinds = {type(force.getCollectiveVariable(k)) for k in range(force.getNumCollectiveVariables())}
    assert openmm.PythonForce in kinds
    with_torch_force = mixed(mm_system, interface="TorchForce")  # no copy is made of it
    for interpolate in (False, True):
        with pytest.raises(InputError, match="the MM System has a TorchForce"):
            mixed(with_torch_force, interpolate=interpolate)


@pytest.mark.parametrize("interpolate", [False, True])
def test_workflow_of_a_solute_in_solvent(interpolate, tmp_path):
    """Student in rigid water: minimise, heat, constant pressure, a trajectory. The barostat knows
    the molecules, and water keeps its shape.
    """
    box = solution("tip4pew", 0.6)
    mm_system = box.mm_system(**PME, constraints=app.HBonds, hydrogenMass=1.5)
    mixed = MLPotential("mlff-student-tiny").createMixedSystem(
        box.topology, mm_system, SOLUTE, interpolate=interpolate
    )
    barostat = openmm.MonteCarloBarostat(1.0 * unit.bar, 300.0 * unit.kelvin, 5)
    barostat.setRandomNumberSeed(4)
    mixed.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 10.0, 0.0005)
    integrator.setRandomNumberSeed(4)
    platform = openmm.Platform.getPlatformByName("CPU")
    simulation = app.Simulation(box.topology, mixed, integrator, platform)
    simulation.context.setPositions(box.positions)
    molecules = sorted(list(molecule) for molecule in simulation.context.getMolecules())
    sites = [[a.index for a in r.atoms()] for r in box.topology.residues() if r.name == "HOH"]
    assert molecules == [SOLUTE, *sites]
    clashing = energy_of(simulation.context)
    simulation.minimizeEnergy(maxIterations=100)
    assert energy_of(simulation.context) < clashing
    simulation.context.setVelocitiesToTemperature(300.0, 1)
    simulation.reporters.append(app.DCDReporter(str(tmp_path / "run.dcd"), 20))
    volume = simulation.context.getState().getPeriodicBoxVolume()
    simulation.step(100)
    state = simulation.context.getState(positions=True)
    assert state.getPeriodicBoxVolume() != volume
    positions = state.getPositions(asNumpy=True)._value
    for k in range(mixed.getNumConstraints()):
        first, second, length = mixed.getConstraintParameters(k)
        distance = np.linalg.norm(positions[first] - positions[second])
        assert distance == pytest.approx(length._value, rel=1e-4)
    bonds = [[a.index, b.index] for a, b in box.topology.bonds() if a.index < 22]
    lengths = np.linalg.norm(np.diff(positions[bonds], axis=1), axis=2)
    assert 0.08 < lengths.min() and lengths.max() < 0.18  # the student holds the solute together


def test_solute_in_solvent_at_constant_temperature():
    """Student and rigid water have the kinetic energy of their degrees of freedom at 300 K, within
    four standard errors, in a box that stays as it is.
    """
    box = solution("tip3p", 0.6)
    mm_system = box.mm_system(**PME, constraints=app.HBonds)
    mixed = MLPotential("mlff-student-tiny").createMixedSystem(box.topology, mm_system, SOLUTE)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 50.0, 0.0005)
    integrator.setRandomNumberSeed(6)
    platform = openmm.Platform.getPlatformByName("CPU")
    simulation = app.Simulation(box.topology, mixed, integrator, platform)
    simulation.context.setPositions(box.positions)
    simulation.minimizeEnergy(maxIterations=100)
    simulation.context.setVelocitiesToTemperature(300.0, 1)
    simulation.step(100)
    masses = np.array([mixed.getParticleMass(k)._value for k in range(mixed.getNumParticles())])
    volume = simulation.context.getState().getPeriodicBoxVolume()
    solute, all_of_it = [], []
    for _ in range(20):
        simulation.step(20)
        state = simulation.context.getState(energy=True, velocities=True)
        velocities = state.getVelocities(asNumpy=True)._value
        solute.append(0.5 * masses[SOLUTE] @ (velocities[SOLUTE] ** 2).sum(1))
        all_of_it.append(state.getKineticEnergy()._value)
    assert state.getPeriodicBoxVolume() == volume
    everything = 3 * (masses > 0).sum() - mixed.getNumConstraints() - 3  # a CMMotionRemover
    for kinetic, degrees in ((solute, 3 * len(SOLUTE)), (all_of_it, everything)):
        expected = 0.5 * degrees * KB * 300.0 / KJ_PER_MOL
        # Samples are 10 fs apart, velocities forget themselves within 20 fs: a quarter are
        # independent.
        error = expected * np.sqrt(2.0 / degrees) / np.sqrt(len(kinetic) / 4)
        assert np.mean(kinetic) == pytest.approx(expected, rel=0, abs=4 * error)


def test_torsion_between_atoms_that_are_not_bonded(potential):
    """openmm-ml 1.8 refuses any such torsion, far from the ML region too: removeBonds in its
    embeddings/utilities.py knows proper and improper ones alone. Added afterwards it works.
    """
    box = solution("tip3p", 0.3)
    torsion = openmm.PeriodicTorsionForce()
    torsion.addTorsion(22, 25, 28, 31, 2, 0.0, 5.0)  # four water molecules
    mm_system = box.mm_system()
    mm_system.addForce(openmm.PeriodicTorsionForce(torsion))
    with pytest.raises(ValueError, match="Unrecognized torsion kind"):
        potential.createMixedSystem(box.topology, mm_system, SOLUTE)
    mixed = potential.createMixedSystem(box.topology, box.mm_system(), SOLUTE)
    before = energy_of(context_at(mixed, box.positions))
    mixed.addForce(torsion)
    assert 0.0 < abs(energy_of(context_at(mixed, box.positions)) - before) <= 10.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"presision": "double"}, "unknown key 'presision'; did you mean 'precision'"),
        ({"precision": "half"}, "precision must be 'single' or 'double', not 'half'"),
        ({"charge": 1}, "charge 1, multiplicity 1: the student was trained on neutral"),
        ({"multiplicity": 2}, "charge 0, multiplicity 2"),
        ({"device": "gpu"}, "cannot use the device 'gpu'"),
    ],
)
def test_unusable_option_is_refused(options, words, potential):
    molecule = solution("tip3p")
    with pytest.raises(InputError, match=words):
        potential.createSystem(molecule.topology, **options)
    with pytest.raises(InputError, match=words):
        potential.createMixedSystem(molecule.topology, molecule.mm_system(), SOLUTE, **options)


def test_charge_and_multiplicity_of_training_are_taken(potential):
    topology, _ = load_structure("O")
    potential.createSystem(topology, charge=0, multiplicity=1)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mlff-student", {}, "needs modelPath=.*shipped models are mlff-student-original"),
        ("mlff-student", {"modelPth": "x"}, "did you mean 'modelPath'"),
        ("mlff-student-tiny", {"modelPath": "x.pt"}, "takes no modelPath"),
    ],
)
def test_unusable_model_is_refused(name, options, words):
    with pytest.raises(InputError, match=words):
        MLPotential(name, **options)


def test_precision(tiny_checkpoint):
    potential = MLPotential("mlff-student", modelPath=str(tiny_checkpoint))
    topology, positions = load_structure("CCO")
    single, double = (
        energy_of(context_at(potential.createSystem(topology, precision=precision), positions))
        for precision in ("single", "double")
    )
    assert 1e-12 < abs(single / double - 1.0) < 1e-6


def test_precision_that_an_archive_does_not_have_is_refused(tiny_archive):
    potential = MLPotential("mlff-student", modelPath=str(tiny_archive))
    topology, _ = load_structure("O")
    potential.createSystem(topology, precision="single")
    with pytest.raises(InputError, match="exported in float32, not float64"):
        potential.createSystem(topology, precision="double")


def test_documentation(tmp_path, monkeypatch):
    """The Python of the page on OpenMM runs as it stands."""
    code = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert code
    box = solution("tip4pew", 1.05)
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(DIPEPTIDE.parent)
    with open("solvated.pdb", "w") as file:
        app.PDBFile.writeFile(box.topology, box.positions, file)
    names: dict[str, Any] = {}
    for block in code:
        exec(block, names)
    assert Path("run.csv").read_text().count("\n") == 11
    assert names["mixed"].getNumParticles() == box.topology.getNumAtoms()
    assert len(names["solute"]) == 22


def test_import_of_openmmml_is_light():
    """It is anybody's: it must not pay for torch, nor fail where this package lacks something."""
    script = """
import sys
for name in ("torch", "ase", "mdtraj", "scipy", "vesin", "yaml", "rich", "openmmtorch"):
    sys.modules[name] = None  # importing it raises
import openmmml
assert "mlff-student-tiny" in openmmml.MLPotential._implFactories
openmmml.MLPotential("mlff-student-tiny")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
