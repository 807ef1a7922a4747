"""A student as a force of OpenMM: derivatives, subsets, boxes, refusals, files."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import write
from openmm import unit
from openmm.app import Element, PDBxFile
from openmm_contexts import context_of, energy_at, forces_at, topology_of
from rdkit import Chem
from rdkit.Chem import AllChem

import openmm_integration.torchforce
from mlff_student.archive.archive import load_archive
from mlff_student.core.errors import ArchiveError, InputError, MissingDependencyError
from mlff_student.core.units import KJ_PER_MOL, NM
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.structures.checks import perceive_bonds
from mlff_student.structures.reading import Structure, make_topology, write_topology
from openmm_integration import create_system, load_structure, student_force
from openmm_integration.force import PythonForceComputation
from openmm_integration.topology import openmm_topology

INTERFACES = ("TorchForce", "PythonForce")
both_interfaces = pytest.mark.parametrize("interface", INTERFACES)
both_platforms = pytest.mark.parametrize("platform", ["Reference", "CPU"])
# Of a force on the CPU platform, which keeps positions in float32: 3e-8 nm at 0.5 nm, times force
# constants of some 1e6 kJ/mol/nm^2.
ROUNDED = 0.3  # kJ/mol/nm


@pytest.mark.parametrize("name", ["ethanol", "triclinic"])
def test_native_and_portable_kernels_give_the_same_numbers(name, structures):
    atoms = structures[name]
    positions = atoms.positions / NM
    contexts = [
        context_of(create_system(topology_of(atoms), "tiny", backend=backend), "CPU")
        for backend in ("native", "portable")
    ]
    energies = [energy_at(context, positions) for context in contexts]
    # float32 sums in another order: 1e-6 eV an atom, as between the engines.
    assert energies[0] == pytest.approx(energies[1], rel=0, abs=1e-6 / KJ_PER_MOL * len(atoms))
    found = [forces_at(context, positions) for context in contexts]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=2e-5 / KJ_PER_MOL * NM)
    assert (found[0] != found[1]).any()  # else the same kernels ran


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("backend", ["native", "portable"])
@pytest.mark.parametrize("name", ["ethanol", "water_box", "triclinic"])
def test_both_interfaces_give_the_same_numbers(name, backend, platform, structures):
    atoms = structures[name]
    topology, positions = topology_of(atoms), atoms.positions / NM
    (energy, forces), (other_energy, other_forces) = (
        (energy_at(context, positions), forces_at(context, positions))
        for interface in INTERFACES
        for context in [
            context_of(
                create_system(topology, "tiny", backend=backend, interface=interface), platform
            )
        ]
    )
    # The same kernels in another unit: 1e-6 eV and 1e-5 eV/angstrom, the float32 of the network
    # and, on the CPU platform, of positions and forces.
    tolerance = 1e-6 / KJ_PER_MOL * len(atoms)
    assert other_energy == pytest.approx(energy, rel=0, abs=tolerance)
    np.testing.assert_allclose(other_forces, forces, rtol=0, atol=1e-5 / KJ_PER_MOL * NM)


@pytest.mark.skipif(
    "CUDA"
    not in {
        openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())
    },
    reason="OpenMM has no CUDA platform here",
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("atoms", [None, [5, 0, 1, 2, 3, 4, 6, 7, 8]])
@both_interfaces
def test_cuda_platform(interface, atoms, device, structures):
    """Native kernels compute on the CPU there, portable ones where they are told: one result."""
    ethanol = structures["ethanol"]
    topology, positions = topology_of(ethanol), ethanol.positions / NM
    options = {"atoms": atoms, "interface": interface}
    here = context_of(create_system(topology, "tiny", **options), "CPU")
    there = context_of(create_system(topology, "tiny", device=device, **options), "CUDA")
    np.testing.assert_allclose(
        forces_at(there, positions), forces_at(here, positions), rtol=1e-4, atol=ROUNDED
    )


@both_interfaces
@pytest.mark.parametrize(
    ("platform", "step", "tolerance"),
    [
        # nm: truncation falls with its square, rounding of -1e5 kJ/mol grows with 1/step.
        ("Reference", 1e-5, 1e-5),
        # Rounding of positions grows with 1/step too.
        ("CPU", 1e-4, 1e-3),
    ],
)
@pytest.mark.parametrize("name", ["ethanol", "triclinic"])
def test_forces_are_the_slope_of_the_energy(
    name, platform, step, tolerance, interface, structures, tiny_archive64
):
    """Central differences of the energy that OpenMM returns, along random directions."""
    atoms = structures[name]
    positions = atoms.positions / NM
    system = create_system(topology_of(atoms), tiny_archive64, interface=interface)
    context = context_of(system, platform)
    forces = forces_at(context, positions)
    rng = np.random.default_rng(1)
    for _ in range(5):
        direction = rng.standard_normal(positions.shape)
        up = energy_at(context, positions + step * direction)
        down = energy_at(context, positions - step * direction)
        expected = -np.sum(forces * direction)
        assert (up - down) / (2 * step) == pytest.approx(
            expected, abs=tolerance * np.linalg.norm(forces)
        )


@both_interfaces
@both_platforms
def test_subset_of_scattered_atoms(platform, interface, structures, tiny_archive64):
    """Two of four particles' worth of water among others: only its atoms feel the student."""
    water, spectators = structures["water"], Atoms("HHHO", positions=np.eye(4, 3) * 1.1 + 0.4)
    atoms = Atoms("O") + spectators[:2] + Atoms("H") + spectators[2:] + Atoms("H")
    chosen = [0, 3, 6]
    atoms.positions[:] = 5.0
    atoms.positions[chosen] = water.positions
    atoms.positions[[1, 2, 4, 5]] = spectators.positions
    topology = topology_of(atoms)
    forces, alone = (
        forces_at(
            context_of(
                create_system(top, tiny_archive64, atoms=some, interface=interface), platform
            ),
            positions / NM,
        )
        for top, some, positions in (
            (topology, chosen, atoms.positions),
            (topology_of(water), None, water.positions),
        )
    )
    # The same edges in the same order: equal to the last digit but for the conversion of units, and
    # for the float32 in which the CPU platform keeps forces.
    relative = 1e-12 if platform == "Reference" else 1e-6
    np.testing.assert_allclose(forces[chosen], alone, rtol=relative, atol=1e-9)
    assert not forces[[1, 2, 4, 5]].any()


@both_interfaces
def test_order_of_a_subset(interface, structures, tiny_archive64):
    """A subset given in another order, and by a generator, puts every force on its own atom all the
    same.
    """
    ethanol = structures["ethanol"]
    order = (int(k) for k in np.random.default_rng(3).permutation(len(ethanol)))
    shuffled = create_system(topology_of(ethanol), tiny_archive64, atoms=order, interface=interface)
    plain = create_system(topology_of(ethanol), tiny_archive64)
    positions = ethanol.positions / NM
    np.testing.assert_allclose(
        forces_at(context_of(shuffled), positions),
        forces_at(context_of(plain), positions),
        rtol=1e-9,  # sums in another order
        atol=1e-7,
    )


@both_interfaces
@both_platforms
@pytest.mark.parametrize("name", ["water_box", "triclinic"])
def test_wrapped_and_unwrapped_positions(name, platform, interface, structures, tiny_archive64):
    """Moving atoms by lattice vectors changes neither energy nor forces."""
    atoms = structures[name]
    system = create_system(topology_of(atoms), tiny_archive64, interface=interface)
    context = context_of(system, platform)
    images = np.random.default_rng(2).integers(-2, 3, (len(atoms), 3))
    moved = (atoms.positions + images @ atoms.cell.array) / NM
    home = atoms.positions / NM
    exact = platform == "Reference"
    assert energy_at(context, moved) == pytest.approx(
        energy_at(context, home), abs=(1e-6 if exact else 0.01) * len(atoms)
    )
    # Rounding of positions a few boxes away, times force constants of some 1e6 kJ/mol/nm2.
    np.testing.assert_allclose(
        forces_at(context, moved), forces_at(context, home), atol=1e-6 if exact else ROUNDED
    )


@both_interfaces
@both_platforms
def test_box_that_changes(platform, interface, structures, tiny_archive64):
    """A Context whose box is set anew has the energy of a System made with that box."""
    atoms = structures["triclinic"]
    system = create_system(topology_of(atoms), tiny_archive64, interface=interface)
    context = context_of(system, platform)
    before = energy_at(context, atoms.positions / NM)
    atoms.set_cell(atoms.cell.array * [1.02, 1.03, 0.97], scale_atoms=True)
    context.setPeriodicBoxVectors(*(openmm.Vec3(*row) for row in atoms.cell.array / NM))
    after = energy_at(context, atoms.positions / NM)
    afresh = create_system(topology_of(atoms), tiny_archive64, interface=interface)
    expected = energy_at(context_of(afresh, platform), atoms.positions / NM)
    assert after == pytest.approx(expected, abs=1e-7 * len(atoms))
    assert abs(after - before) > 1.0


@both_interfaces
def test_periodic_overrides_the_topology(interface, structures, tiny_archive64):
    atoms = structures["water_box"]
    system = create_system(topology_of(atoms), tiny_archive64, periodic=False, interface=interface)
    atoms.pbc = False
    atoms.calc = StudentForceFieldCalculator(tiny_archive64)
    energy = energy_at(context_of(system), atoms.positions / NM) * KJ_PER_MOL
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    assert not system.usesPeriodicBoundaryConditions()


@both_interfaces
def test_precision(interface, structures, tiny_checkpoint):
    """Of the network: float32 rounds, float64 gives the numbers of ASE to 12 digits."""
    atoms = structures["ethanol"]
    atoms.calc = StudentForceFieldCalculator(tiny_checkpoint, dtype=torch.float64)
    expected = atoms.get_potential_energy()
    error = {}
    for dtype in (torch.float32, torch.float64):
        system = create_system(
            topology_of(atoms), tiny_checkpoint, dtype=dtype, interface=interface
        )
        energy = energy_at(context_of(system), atoms.positions / NM) * KJ_PER_MOL
        error[dtype] = abs(energy / expected - 1.0)
    assert error[torch.float64] < 1e-12 < error[torch.float32] < 1e-6


@both_interfaces
def test_archive_of_another_precision_is_refused(interface, structures, tiny_archive):
    """An exported archive has one precision: it is taken unless another one is asked for."""
    topology = topology_of(structures["water"])
    student_force(topology, tiny_archive, dtype=torch.float32, interface=interface)
    with pytest.raises(InputError, match=r"exported in float32, not float64.*--dtype float64"):
        student_force(topology, tiny_archive, dtype=torch.float64, interface=interface)


@both_interfaces
def test_threads_do_not_change_the_numbers(interface, structures, tiny_archive):
    atoms = structures["water_box"]
    found = [
        forces_at(
            context_of(
                create_system(
                    topology_of(atoms), tiny_archive, threads=threads, interface=interface
                )
            ),
            atoms.positions / NM,
        )
        for threads in (1, 3)
    ]
    np.testing.assert_array_equal(*found)


def test_pickled_computation_keeps_its_options(tiny_archive):
    archive = load_archive(tiny_archive)
    computation = PythonForceComputation(archive, [8, 1, 1], False, "native", "cpu", 3)
    again = pickle.loads(pickle.dumps(computation))
    assert again._student.threads == 3
    assert again._student.backend == "native"


def test_masses_and_box(structures, tiny_archive):
    atoms = structures["triclinic"]
    system = create_system(topology_of(atoms), tiny_archive)
    masses = [system.getParticleMass(k).value_in_unit(unit.dalton) for k in range(len(atoms))]
    # OpenMM and ASE take their masses from editions of the IUPAC table that differ by 1e-4.
    np.testing.assert_allclose(masses, atoms.get_masses(), rtol=1e-3)
    box = np.array(
        [row.value_in_unit(unit.angstrom) for row in system.getDefaultPeriodicBoxVectors()]
    )
    np.testing.assert_allclose(box, atoms.cell.array, atol=1e-12)
    assert system.usesPeriodicBoundaryConditions()
    assert not create_system(
        topology_of(structures["water"]), tiny_archive
    ).usesPeriodicBoundaryConditions()


@both_interfaces
def test_force_group_and_name(interface, structures, tiny_archive):
    force = student_force(
        topology_of(structures["water"]), tiny_archive, force_group=3, interface=interface
    )
    assert (force.getForceGroup(), force.getName()) == (3, "mlff-student random_tiny")
    assert type(force).__name__ == interface


def test_unknown_element_is_refused(tiny_archive):
    topology = topology_of(Atoms("OH2", positions=np.eye(3)))
    residue = topology.addResidue("ZN", topology.addChain())
    topology.addAtom("ZN", Element.getBySymbol("Zn"), residue)
    with pytest.raises(InputError, match=r"atom 3 \(ZN\) is Zn; the student knows H, C, N"):
        student_force(topology, tiny_archive)
    student_force(topology, tiny_archive, atoms=[0, 1, 2])  # it may stand by


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ([], "no atoms"),
        ([0, 3], "from 0 to 2"),
        ([-1], "from 0 to 2"),
        ([1, 1], "distinct"),
    ],
)
def test_unusable_subset_is_refused(chosen, words, structures, tiny_archive):
    with pytest.raises(InputError, match=words):
        student_force(topology_of(structures["water"]), tiny_archive, atoms=chosen)


def test_missing_model_is_refused(structures):
    with pytest.raises(ArchiveError, match="no model 'huge'"):
        student_force(topology_of(structures["water"]), "huge")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"interface": "TorchForces"}, "no interface 'TorchForces'; there are auto, TorchForce"),
        ({"backend": "fast"}, "no backend 'fast'; expected auto, native, portable"),
        ({"threads": 0}, "threads must be a whole number from 1 to 1024, got 0"),
        ({"threads": 1.5}, "threads must be a whole number from 1 to 1024, got 1.5"),
        ({"device": "gpu"}, "cannot use the device 'gpu'"),
        ({"device": "cuda:99"}, "cannot use the device 'cuda:99'"),
    ],
)
@both_interfaces
def test_unusable_option_is_refused(option, words, interface, structures, tiny_archive):
    with pytest.raises(InputError, match=words):
        student_force(
            topology_of(structures["water"]), tiny_archive, **{"interface": interface} | option
        )


def test_what_is_not_installed_is_named(monkeypatch, structures, tiny_archive):
    """TorchForce asked for is an error where the plug-in does not load; "auto" does without."""
    topology = topology_of(structures["water"])
    openmm_integration.torchforce.import_openmmtorch.cache_clear()
    monkeypatch.setitem(sys.modules, "openmmtorch", None)
    with pytest.raises(MissingDependencyError, match=r"TorchForce does not work.*pip install"):
        student_force(topology, tiny_archive, interface="TorchForce")
    assert isinstance(student_force(topology, tiny_archive), openmm.PythonForce)
    monkeypatch.delattr(openmm, "PythonForce")
    with pytest.raises(MissingDependencyError, match=r"needs OpenMM 8.5.*pip install"):
        student_force(topology, tiny_archive)


@both_interfaces
@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_nan_positions_raise(platform, interface, structures, tiny_archive):
    """TorchForce itself passes NaN on in silence."""
    water = structures["water"]
    context = context_of(
        create_system(topology_of(water), tiny_archive, interface=interface), platform
    )
    positions = water.positions / NM
    positions[1, 2] = np.nan
    with pytest.raises(openmm.OpenMMException, match="NaN"):
        forces_at(context, positions)


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )


def test_openmm_imported_before_torch(tiny_archive):
    """Then OpenMM fails to load the kernels of TorchForce; the student loads them again."""
    result = run_python(f"""
import openmm
from openmm_integration import create_system, load_structure
topology, positions = load_structure("O")
system = create_system(topology, {str(tiny_archive)!r})
platform = openmm.Platform.getPlatformByName("Reference")
context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
context.setPositions(positions)
print(context.getState(energy=True).getPotentialEnergy())
""")
    assert result.returncode == 0, result.stderr
    assert "kJ/mol" in result.stdout


@pytest.mark.parametrize("atoms", [None, [5, 0, 1, 2, 3, 4, 6, 7, 8]])
def test_python_force_survives_xml_and_copies(atoms, structures, tiny_archive64, tmp_path):
    """The archive travels inside: its file may be gone."""
    ethanol = structures["ethanol"]
    positions = ethanol.positions / NM
    archive = shutil.copy(tiny_archive64, tmp_path)
    system = create_system(topology_of(ethanol), archive, atoms=atoms, interface="PythonForce")
    Path(archive).unlink()
    expected = forces_at(context_of(system), positions)
    xml = openmm.XmlSerializer.serialize(system)
    for again in (openmm.XmlSerializer.deserialize(xml), copy.deepcopy(system)):
        np.testing.assert_array_equal(forces_at(context_of(again), positions), expected)
    # In a process that has imported nothing yet, too.
    (tmp_path / "system.xml").write_text(xml)
    np.save(tmp_path / "positions.npy", positions)
    result = run_python(f"""
import numpy, openmm
system = openmm.XmlSerializer.deserialize(open({str(tmp_path / "system.xml")!r}).read())
platform = openmm.Platform.getPlatformByName("Reference")
context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
context.setPositions(numpy.load({str(tmp_path / "positions.npy")!r}))
numpy.save({str(tmp_path / "forces.npy")!r}, context.getState(forces=True).getForces(asNumpy=True))
""")
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "forces.npy"), expected)


def test_python_force_without_torch(tiny_archive, structures, tmp_path):
    """A System, its XML and a monitored run in a process that cannot import torch."""
    ethanol = structures["ethanol"]
    structure, positions = write_structure("pdb", ethanol, tmp_path), tmp_path / "positions.npy"
    np.save(positions, ethanol.positions / NM)
    result = run_python(f"""
import sys
sys.modules["torch"] = None
import numpy, openmm
from openmm import app
from openmm_integration import Monitor, create_system, load_structure
topology, _ = load_structure({structure!r})
positions = numpy.load({str(positions)!r}) * openmm.unit.nanometer
system = create_system(topology, {str(tiny_archive)!r})
system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
platform = openmm.Platform.getPlatformByName("Reference")
simulation = app.Simulation(topology, system, openmm.VerletIntegrator(0.0005), platform)
simulation.context.setPositions(positions)
forces = simulation.context.getState(forces=True).getForces(asNumpy=True)
numpy.save({str(tmp_path / "forces.npy")!r}, forces)
monitor = Monitor(topology, positions, {str(tiny_archive)!r}, every=5)
simulation.reporters.append(monitor)
simulation.step(10)
print(len(monitor.checks))
""")
    assert result.returncode == 0, result.stderr
    assert "interface PythonForce, since TorchForce does not work" in result.stderr
    assert int(result.stdout) > 3
    here = context_of(create_system(topology_of(ethanol), tiny_archive))
    expected = forces_at(here, np.load(positions))
    np.testing.assert_array_equal(np.load(tmp_path / "forces.npy"), expected)


def test_serialised_torch_force(tiny_archive64):
    """A System read back from XML has the same forces, where TorchForce can be read back at all."""
    bare = run_python("""
import torch, openmm, openmmtorch
class Harmonic(torch.nn.Module):
    def forward(self, positions):
        return (positions ** 2).sum()
force = openmmtorch.TorchForce(torch.jit.script(Harmonic()))
openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(force))
""")
    if bare.returncode:
        pytest.skip("this openmmtorch cannot read back even a TorchForce without a student")
    result = run_python(f"""
import torch, openmm
from openmm_integration import create_system, load_structure
topology, positions = load_structure("CCO")
def forces(system):
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(positions)
    return context.getState(forces=True).getForces(asNumpy=True)
system = create_system(topology, {str(tiny_archive64)!r}, interface="TorchForce")
again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
assert (forces(system) == forces(again)).all()
""")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_python_force_without_openmmtorch(structures, tiny_archive, tmp_path):
    """In an environment with the CPU-only torch 2.13, which no openmmtorch is compiled for."""
    root = Path(__file__).parents[2]
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    needed = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    command = [python, "-m", "pip", "install", "--quiet", "torch==2.13.0+cpu", "openmm>=8.6"]
    installed = subprocess.run([*command, *needed], capture_output=True, text=True, check=False)
    if "No matching distribution found for torch" in installed.stderr:
        pytest.skip("pip finds no CPU-only torch 2.13 here")
    assert installed.returncode == 0, installed.stderr
    ethanol = structures["ethanol"]
    np.save(tmp_path / "positions.npy", ethanol.positions / NM)
    write_structure("pdb", ethanol, tmp_path)
    script = f"""
import importlib.util, numpy, openmm, torch
from openmm import app
from openmm_integration import create_system
assert torch.__version__ == "2.13.0+cpu" and not importlib.util.find_spec("openmmtorch")
topology = app.PDBFile({str(tmp_path / "ethanol.pdb")!r}).topology
system = create_system(topology, {str(tiny_archive)!r})
system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
platform = openmm.Platform.getPlatformByName("CPU")
context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
context.setPositions(numpy.load({str(tmp_path / "positions.npy")!r}))
numpy.save({str(tmp_path / "forces.npy")!r}, context.getState(forces=True).getForces(asNumpy=True))
"""
    result = subprocess.run(
        [python, "-c", script],
        env=os.environ | {"PYTHONPATH": f"{root / 'plugin'}:{root}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "interface PythonForce" in result.stderr
    here = create_system(topology_of(ethanol), tiny_archive, backend="portable")
    expected = forces_at(context_of(here, "CPU"), ethanol.positions / NM)
    np.testing.assert_allclose(
        np.load(tmp_path / "forces.npy"), expected, atol=1e-5 * np.abs(expected).max()
    )


def write_structure(kind: str, atoms: Atoms, folder: Path) -> str:
    """Ethanol as a file of a kind."""
    path = folder / f"ethanol.{kind}"
    structure = Structure(atoms, make_topology(atoms, perceive_bonds(atoms)))
    if kind == "pdb":
        write_topology(structure, path)
    elif kind == "cif":
        with path.open("w") as file:
            PDBxFile.writeFile(openmm_topology(structure), atoms.positions * unit.angstrom, file)
    elif kind == "sdf":
        molecule = Chem.AddHs(Chem.MolFromSmiles("CCO"))
        AllChem.EmbedMolecule(molecule, randomSeed=1)
        for index, position in enumerate(atoms.positions):
            molecule.GetConformer().SetAtomPosition(index, position)
        Chem.MolToMolFile(molecule, str(path))
    else:
        write(path, atoms)
    return str(path)


@pytest.mark.parametrize("kind", ["pdb", "cif", "sdf", "xyz", "extxyz"])
def test_load_structure_from_files(kind, structures, tmp_path):
    atoms = structures["ethanol"]
    if kind == "sdf":  # the order of RDKit: heavy atoms as in CCO, then their hydrogens
        atoms = load_ethanol()
    topology, positions = load_structure(write_structure(kind, atoms, tmp_path))
    assert [atom.element.symbol for atom in topology.atoms()] == list(atoms.symbols)
    assert topology.getNumBonds() == 8
    assert topology.getPeriodicBoxVectors() is None
    # PDB keeps three decimals of an angstrom, mol files four.
    np.testing.assert_allclose(positions.value_in_unit(unit.angstrom), atoms.positions, atol=6e-4)


def load_ethanol() -> Atoms:
    topology, positions = load_structure("CCO")
    symbols = [atom.element.symbol for atom in topology.atoms()]
    return Atoms(symbols, positions=positions.value_in_unit(unit.angstrom))


def test_load_structure_from_smiles():
    ethanol = load_ethanol()
    assert ethanol.get_chemical_formula() == "C2H6O"
    assert len(perceive_bonds(ethanol)) == 8


@pytest.mark.parametrize("handedness", [1.0, -1.0])
def test_load_structure_turns_any_cell(handedness, structures, tiny_archive64, tmp_path):
    """A cell that OpenMM does not take as it is (turned, left-handed, strongly tilted)."""
    atoms = structures["triclinic"]
    turn = np.linalg.qr(np.random.default_rng(4).standard_normal((3, 3)))[0]
    turn[0] *= handedness * np.linalg.det(turn)
    atoms.set_cell(atoms.cell.array @ turn.T, scale_atoms=True)
    a, b, c = atoms.cell.array
    atoms.set_cell([a, b + a, c - 2 * b])  # the same lattice
    atoms.calc = StudentForceFieldCalculator(tiny_archive64)
    expected = atoms.get_potential_energy()
    path = tmp_path / "crystal.extxyz"
    write(path, atoms)

    topology, positions = load_structure(str(path))
    context = context_of(create_system(topology, tiny_archive64))
    energy = energy_at(context, positions.value_in_unit(unit.nanometer)) * KJ_PER_MOL
    assert energy == pytest.approx(expected, rel=1e-8)  # the file keeps eight decimals


def test_pdb_with_a_box(structures, tmp_path):
    atoms = structures["triclinic"]
    path = tmp_path / "box.pdb"
    write_topology(Structure(atoms, make_topology(atoms, perceive_bonds(atoms))), path)
    topology, _ = load_structure(str(path))
    box = np.array(topology.getPeriodicBoxVectors().value_in_unit(unit.angstrom))
    # CRYST1 keeps hundredths of a degree: 8 angstrom times 1e-4 rad.
    np.testing.assert_allclose(box, atoms.cell.array, atol=3e-3)
    assert mdtraj.load(str(path)).n_atoms == topology.getNumAtoms()


def test_ions_of_a_student_of_ions_state_their_charge(tiny_checkpoint, tmp_path):
    path = shutil.copy(tiny_checkpoint, tmp_path / "model.pt")
    card = json.loads(tiny_checkpoint.with_name("card.json").read_text())
    card["domain"]["charged"] = True
    (tmp_path / "card.json").write_text(json.dumps(card))
    methyl = topology_of(Atoms("CH3", molecule("CH3").positions))
    options = {"dtype": "float32", "interface": "PythonForce"}
    with pytest.raises(InputError, match="State the total charge"):
        student_force(methyl, path, **options)
    student_force(methyl, path, charge=1, **options)
    with pytest.raises(InputError, match=r"charge \+2 has 7 electrons"):
        student_force(methyl, path, charge=2, **options)
    with pytest.raises(InputError, match="multiplicity 3"):
        student_force(methyl, path, charge=1, multiplicity=3, **options)
