"""What OpenMM users do with a System: ensembles, other forces on top, copies, restarts, reporters.

The students are the shipped tiny one, where motion must be physical, and a random one in float64,
where numbers must be equal.
"""

import os
from collections.abc import Callable
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
from ase import Atoms
from numpy.typing import NDArray
from openmm import app, unit
from openmm_contexts import topology_of
from scipy.spatial.distance import pdist

from mlff_student.core.errors import InputError
from mlff_student.core.units import KB, KJ_PER_MOL, NM
from mlff_student.structures.checks import perceive_bonds
from mlff_student.structures.reading import Structure, make_topology
from openmm_integration import create_system
from openmm_integration.system import check_molecules
from openmm_integration.topology import openmm_topology

PLATFORMS = ("Reference", "CPU")
INTERFACES = ("TorchForce", "PythonForce")
TIMESTEP = 0.0005  # ps


def langevin(temperature_K: float = 300.0, friction_per_ps: float = 10.0) -> openmm.Integrator:
    integrator = openmm.LangevinMiddleIntegrator(temperature_K, friction_per_ps, TIMESTEP)
    integrator.setRandomNumberSeed(3)
    return integrator


def simulation_of(
    atoms: Atoms,
    system: openmm.System,
    integrator: openmm.Integrator,
    platform: str = "Reference",
    temperature_K: float = 300.0,
) -> app.Simulation:
    """Minimised a little, with velocities of the temperature."""
    simulation = app.Simulation(
        topology_of(atoms), system, integrator, openmm.Platform.getPlatformByName(platform)
    )
    simulation.context.setPositions(atoms.positions / NM)
    simulation.minimizeEnergy(maxIterations=30)
    simulation.context.setVelocitiesToTemperature(temperature_K, 5)
    return simulation


def values_of(context: openmm.Context) -> tuple[float, float, NDArray[np.float64]]:
    """Potential and kinetic energy, kJ/mol; positions (N, 3), nm."""
    state = context.getState(energy=True, positions=True)
    return (
        state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole),
        state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole),
        state.getPositions(asNumpy=True).value_in_unit(unit.nanometer),
    )


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", ["ethanol", "water_box"])
def test_minimise_then_constant_energy(name, platform, structures):
    """Minimisation lowers the energy; then total energy and momentum stay."""
    atoms = structures[name]
    system = create_system(topology_of(atoms), "tiny")
    simulation = simulation_of(atoms, system, openmm.VerletIntegrator(TIMESTEP), platform)
    context = simulation.context
    lowest, *_ = values_of(context)
    context.setPositions(atoms.positions / NM)
    assert lowest < values_of(context)[0] - 1.0
    simulation.minimizeEnergy(maxIterations=30)
    context.setVelocitiesToTemperature(300.0, 5)
    momentum = momentum_of(context)
    total, kinetic = [], []
    for _ in range(40):
        simulation.step(10)
        energy, moving, _ = values_of(context)
        total.append(energy + moving)
        kinetic.append(moving)
    # A leap-frog step of 0.5 fs: 1 % of what the potential and kinetic energy exchange.
    assert np.std(total) < 0.03 * np.std(kinetic)
    np.testing.assert_allclose(momentum_of(context), momentum, atol=2e-3)  # float32 forces


def momentum_of(context: openmm.Context) -> NDArray[np.float64]:
    """Total momentum (3,), dalton nm/ps."""
    system = context.getSystem()
    masses = [system.getParticleMass(k)._value for k in range(system.getNumParticles())]
    return np.array(masses) @ context.getState(velocities=True).getVelocities(asNumpy=True)._value


@pytest.mark.parametrize("platform", PLATFORMS)
def test_constant_temperature(platform, structures):
    """The mean kinetic energy of Langevin dynamics is 3N kT/2, within four standard errors."""
    atoms = structures["ethanol"]
    simulation = simulation_of(
        atoms, create_system(topology_of(atoms), "tiny"), langevin(friction_per_ps=50.0), platform
    )
    simulation.step(200)
    kinetic = []
    for _ in range(100):
        simulation.step(20)
        kinetic.append(values_of(simulation.context)[1])
    expected = 1.5 * len(atoms) * KB * 300.0 / KJ_PER_MOL
    # Samples are 10 fs apart, velocities forget themselves within 20 fs: a quarter are independent.
    error = expected * np.sqrt(2.0 / (3 * len(atoms))) / np.sqrt(len(kinetic) / 4)
    assert np.mean(kinetic) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_barostat_moves_whole_molecules(platform, structures):
    """The box changes, and no molecule changes with it."""
    atoms = structures["triclinic"]
    topology = topology_of(atoms)
    system = create_system(topology, "tiny")
    barostat = openmm.MonteCarloBarostat(1.0 * unit.bar, 300.0 * unit.kelvin, 1)
    barostat.setRandomNumberSeed(1)
    system.addForce(barostat)
    # So short a step that only the barostat moves anything.
    context = openmm.Context(
        system, openmm.VerletIntegrator(1e-9), openmm.Platform.getPlatformByName(platform)
    )
    context.setPositions(atoms.positions / NM)
    molecules = [list(molecule) for molecule in context.getMolecules()]
    residues = [[atom.index for atom in residue.atoms()] for residue in topology.residues()]
    assert sorted(molecules) == residues and len(residues) == 8
    before = context.getState(positions=True)
    context.getIntegrator().step(60)
    after = context.getState(positions=True)
    volumes = [state.getPeriodicBoxVolume()._value for state in (before, after)]
    assert abs(volumes[1] / volumes[0] - 1.0) > 1e-3
    positions = [state.getPositions(asNumpy=True)._value for state in (before, after)]
    for molecule in molecules:
        lengths = [pdist(one[molecule]) for one in positions]
        np.testing.assert_allclose(*lengths, atol=1e-5)  # nm; float32 positions of the CPU platform
    assert np.abs(positions[1] - positions[0]).max() > 1e-3


def test_missing_bonds_are_named(structures, caplog):
    """In a box, where a barostat needs them: in the log, or refused once distances are known."""
    atoms = structures["water_box"]
    bonds = perceive_bonds(atoms)
    whole, torn = (
        openmm_topology(Structure(atoms, make_topology(atoms, some))) for some in (bonds, bonds[1:])
    )
    first = min(bonds[0], key=lambda index: atoms.numbers[index])
    create_system(whole, "ultra_tiny")
    check_molecules(whole, atoms)
    assert "without a bond" not in caplog.text
    create_system(torn, "ultra_tiny")
    assert f"1 atoms without a bond, atom {first} (H" in caplog.text
    with pytest.raises(InputError, match="a molecule of its own") as refused:
        check_molecules(torn, atoms)
    assert all(f"{index} ({atoms.symbols[index]})" in str(refused.value) for index in bonds[0])


@pytest.mark.parametrize("mass", [3.0, 3.0 * unit.dalton])
def test_hydrogen_mass_repartitioning(mass, structures):
    """As OpenMM's force fields do it; the total stays, and so does the energy."""
    atoms = structures["ethanol"]
    topology = topology_of(atoms)
    systems = [create_system(topology, "tiny", hydrogen_mass=one) for one in (None, mass)]
    light, heavy = (
        np.array([system.getParticleMass(k)._value for k in range(len(atoms))])
        for system in systems
    )
    assert (heavy[atoms.numbers == 1] == 3.0).all()
    assert heavy.sum() == pytest.approx(light.sum())
    bonded = {"C": [2, 3], "O": [1]}  # hydrogens
    for symbol, counts in bonded.items():
        lost = (light - heavy)[atoms.symbols == symbol] / (3.0 - light[atoms.numbers == 1][0])
        assert sorted(lost) == pytest.approx(counts)
    energies = [
        values_of(simulation_at_rest(system, atoms.positions / NM).context)[0] for system in systems
    ]
    assert energies[0] == energies[1]


def simulation_at_rest(
    system: openmm.System,
    positions_nm: NDArray[np.float64],
    integrator: openmm.Integrator | None = None,
    platform: str = "Reference",
) -> app.Simulation:
    simulation = app.Simulation(
        app.Topology(),
        system,
        integrator or openmm.VerletIntegrator(TIMESTEP),
        openmm.Platform.getPlatformByName(platform),
    )
    simulation.context.setPositions(positions_nm)
    return simulation


@pytest.mark.parametrize(
    ("mass", "bonds", "words"),
    [
        (3.0, False, "has no bonds"),
        (9.0, True, r"hydrogen_mass=9.0 Da leaves atom 0 \(C1\)"),
        (0.0, True, "hydrogen_mass=0.0 Da must be a positive mass"),
        (-1.0 * unit.dalton, True, "hydrogen_mass=-1.0 Da must be a positive mass"),
        (float("nan"), True, "hydrogen_mass=nan Da must be a positive mass"),
        (3.0 * unit.nanometer, True, "hydrogen_mass=3.0 nm is not a mass"),
        ("heavy", True, "hydrogen_mass=heavy is not a mass"),
    ],
)
def test_unusable_hydrogen_mass_is_refused(mass, bonds, words, structures):
    atoms = structures["ethanol"]
    topology = topology_of(atoms)
    if not bonds:
        topology = openmm_topology(Structure(atoms, make_topology(atoms, [])))
    with pytest.raises(InputError, match=words):
        create_system(topology, "tiny", hydrogen_mass=mass)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("interface", INTERFACES)
def test_other_forces_on_top(interface, platform, structures, tiny_archive64):
    """A restraint, a custom force with a global parameter and a barostat beside the student."""
    atoms = structures["water_box"]
    system = create_system(topology_of(atoms), tiny_archive64, interface=interface)
    alone, _, positions = values_of(
        simulation_at_rest(system, atoms.positions / NM, platform=platform).context
    )
    restraint = openmm.CustomExternalForce("k*periodicdistance(x,y,z,0,0,0)^2")
    restraint.addGlobalParameter("k", 100.0)
    restraint.addParticle(0)
    pull = openmm.CustomBondForce("a*r")
    pull.addPerBondParameter("a")
    pull.addBond(0, 1, [50.0])
    system.addForce(restraint)
    system.addForce(pull)
    barostat = openmm.MonteCarloBarostat(1.0, 300.0)
    barostat.setRandomNumberSeed(1)
    system.addForce(barostat)
    context = simulation_at_rest(system, positions, platform=platform).context
    box = atoms.cell.lengths() / NM
    image = positions[0] - box * np.round(positions[0] / box)
    expected = alone + 50.0 * np.linalg.norm(positions[1] - positions[0])
    for k in (100.0, 7.0):
        context.setParameter("k", k)
        # The CPU platform rounds positions to float32: 3e-8 nm, times forces of 1e3 kJ/mol/nm.
        assert values_of(context)[0] == pytest.approx(
            expected + k * image @ image, rel=0, abs=1e-6 if platform == "Reference" else 1e-3
        )


@pytest.mark.parametrize("interface", INTERFACES)
def test_multiple_timesteps(interface, structures):
    """A stiff restraint four times within each step of the student, by force groups: reversible
    RESPA. Energies of the groups add up, and the total is conserved as with one short step.
    """
    atoms = structures["ethanol"]
    system = create_system(topology_of(atoms), "tiny", force_group=1, interface=interface)
    stiff = openmm.HarmonicBondForce()
    stiff.addBond(0, 2, 0.24, 5e5)  # kJ/mol/nm^2: a period of 20 fs
    system.addForce(stiff)
    simulation = simulation_of(atoms, system, openmm.MTSIntegrator(TIMESTEP, [(1, 1), (0, 4)]))
    context = simulation.context
    parts = [context.getState(energy=True, groups={k}).getPotentialEnergy()._value for k in (0, 1)]
    assert parts[0] > 0.0
    assert sum(parts) == pytest.approx(values_of(context)[0], rel=1e-12)
    total, kinetic = [], []
    for _ in range(40):
        simulation.step(10)
        energy, moving, _ = values_of(context)
        total.append(energy + moving)
        kinetic.append(moving)
    assert np.std(total) < 0.03 * np.std(kinetic)


def test_metadynamics(structures, tmp_path):
    """Hills on a torsion of ethanol, by the class that comes with OpenMM."""
    atoms = structures["ethanol"]
    system = create_system(topology_of(atoms), "tiny")
    torsion = openmm.CustomTorsionForce("theta")
    torsion.addTorsion(0, 1, 2, 3)
    variable = app.BiasVariable(torsion, -np.pi, np.pi, 0.35, periodic=True)
    bias = app.Metadynamics(
        system, [variable], 300.0, biasFactor=5.0, height=2.0, frequency=10, biasDir=str(tmp_path),
        saveFrequency=50,
    )  # fmt: skip
    simulation = simulation_of(atoms, system, langevin(), "CPU")
    bias.step(simulation, 100)
    free_energy = bias.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole)
    assert np.isfinite(free_energy).all() and free_energy.min() < -1.0
    assert list(tmp_path.glob("bias_*.npy"))


@pytest.mark.parametrize("interface", INTERFACES)
def test_several_contexts_of_one_system(interface, structures, tiny_archive64):
    """Contexts that take turns go where each goes alone."""
    atoms = structures["ethanol"]
    system = create_system(topology_of(atoms), tiny_archive64, interface=interface)
    rng = np.random.default_rng(6)
    starts = [atoms.positions / NM + 0.002 * rng.standard_normal((9, 3)) for _ in range(3)]
    alone = []
    for start in starts:
        simulation = simulation_at_rest(system, start)
        simulation.step(20)
        alone.append(values_of(simulation.context)[2])
    together = [simulation_at_rest(system, start) for start in starts]
    for _ in range(20):
        for simulation in together:
            simulation.step(1)
    for simulation, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(values_of(simulation.context)[2], expected)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("name", ["ethanol", "water_box"])
def test_restart_from_a_checkpoint(name, interface, structures, tiny_archive64, tmp_path):
    """Bit for bit, random numbers and barostat included."""
    atoms = structures[name]
    system = create_system(topology_of(atoms), tiny_archive64, interface=interface)
    if name == "water_box":
        barostat = openmm.MonteCarloBarostat(1.0, 300.0, 5)
        barostat.setRandomNumberSeed(1)
        system.addForce(barostat)
    simulation = simulation_at_rest(system, atoms.positions / NM, langevin())
    simulation.step(20)
    path = str(tmp_path / "run.chk")
    simulation.saveCheckpoint(path)
    simulation.step(20)
    expected = simulation.context.getState(positions=True, velocities=True)
    again = simulation_at_rest(system, atoms.positions / NM, langevin())
    again.loadCheckpoint(path)
    assert again.currentStep == 20
    again.step(20)
    found = again.context.getState(positions=True, velocities=True)
    for one, other in (
        (expected.getPositions(asNumpy=True), found.getPositions(asNumpy=True)),
        (expected.getVelocities(asNumpy=True), found.getVelocities(asNumpy=True)),
        (expected.getPeriodicBoxVectors(asNumpy=True), found.getPeriodicBoxVectors(asNumpy=True)),
    ):
        np.testing.assert_array_equal(one._value, other._value)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("interface", INTERFACES)
def test_state_through_xml(interface, platform, structures, tiny_archive64):
    """A run that goes on from a State read back goes where the first one goes."""
    atoms = structures["triclinic"]
    system = create_system(topology_of(atoms), tiny_archive64, interface=interface)
    simulation = simulation_at_rest(system, atoms.positions / NM, platform=platform)
    simulation.step(10)
    state = simulation.context.getState(positions=True, velocities=True)
    xml = openmm.XmlSerializer.serialize(state)
    simulation.step(10)
    again = simulation_at_rest(system, atoms.positions / NM, platform=platform)
    again.context.setState(openmm.XmlSerializer.deserialize(xml))
    again.step(10)
    # The CPU platform has float32 positions, and puts them into the box when they are set.
    np.testing.assert_allclose(
        values_of(again.context)[2],
        values_of(simulation.context)[2],
        rtol=0,
        atol=0.0 if platform == "Reference" else 1e-6,
    )


REPORTERS: dict[str, tuple[Callable[..., object], float]] = {
    # What the format keeps, nm.
    "dcd": (app.DCDReporter, 1e-6),
    "xtc": (app.XTCReporter, 6e-4),
    "pdb": (app.PDBReporter, 6e-5),
    "cif": (app.PDBxReporter, 1e-5),
}


@pytest.mark.parametrize("kind", REPORTERS)
def test_reporters(kind, structures, tmp_path):
    """Frames that another program reads, whole molecules inside the box."""
    reporter, tolerance = REPORTERS[kind]
    atoms = structures["triclinic"]
    topology = topology_of(atoms)
    simulation = simulation_of(atoms, create_system(topology, "tiny"), langevin(), "CPU")
    path, reference = tmp_path / f"run.{kind}", tmp_path / "start.pdb"
    with reference.open("w") as file:
        app.PDBFile.writeFile(topology, atoms.positions * unit.angstrom, file)
    simulation.reporters.append(reporter(str(path), 5))
    frames = []
    for _ in range(3):
        simulation.step(5)
        state = simulation.context.getState(positions=True, enforcePeriodicBox=True)
        frames.append(state.getPositions(asNumpy=True)._value)
    simulation.reporters.clear()  # closes the file
    read = mdtraj.load(str(path), **({"top": str(reference)} if kind in ("dcd", "xtc") else {}))
    assert read.n_frames == 3
    np.testing.assert_allclose(read.xyz, frames, atol=tolerance)
    lengths = np.linalg.norm(atoms.cell.array, axis=1) / NM
    np.testing.assert_allclose(read.unitcell_lengths, [lengths] * 3, atol=1e-4)
    bonds = [(a.index, b.index) for a, b in topology.bonds()]
    assert mdtraj.compute_distances(read, bonds, periodic=False).max() < 0.2


def resident_bytes() -> int:
    """Memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("interface", INTERFACES)
def test_memory_is_flat(interface, structures):
    """10,000 steps leave less than 20 bytes each behind: not one array of three numbers."""
    atoms = structures["water"]
    system = create_system(topology_of(atoms), "ultra_tiny", interface=interface)
    simulation = simulation_of(atoms, system, langevin())
    simulation.step(2000)
    before = resident_bytes()
    simulation.step(10_000)
    assert resident_bytes() - before < 200_000
