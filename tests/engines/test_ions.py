"""Ions, radicals and isotopes in the engines: refused, or kept in the run."""

from pathlib import Path

import numpy as np
import pytest
from openmm import System, unit
from openmm.app import PDBFile
from openmmml import MLPotential
from rdkit import Chem
from rdkit.Chem import AllChem

from mlff_student.core.errors import InputError
from mlff_student.engines.lammps.input import write_lammps_input
from mlff_student.engines.protocol import MDSettings
from mlff_student.engines.run import run_md
from mlff_student.structures.reading import read_structure
from openmm_integration import create_system, load_structure


def pdb_of(smiles: str, path: Path) -> Path:
    """Write a PDB file with formal charges in its columns 79 and 80."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    Chem.MolToPDBFile(mol, str(path))
    return path


def settings_of(engine: str, structure: str, model: Path) -> MDSettings:
    return MDSettings(
        engine=engine, model=str(model), structure=structure, steps=10, timestep_fs=0.5,
        temperature_K=300.0, ensemble="nve", every=5, thermalise_steps=4, friction_per_ps=1.0,
        seed=1,
    )  # fmt: skip


@pytest.mark.parametrize("engine", ["ase", "openmm", "lammps"])
def test_every_engine_refuses_ions_and_writes_nothing(
    engine: str, tiny_archive: Path, tmp_path: Path
):
    for structure, text in [
        ("CC(=O)[O-]", "charge -1, multiplicity 1"),
        ("C[CH2]", "charge 0, multiplicity 2"),
        ("[NH3+]CC(=O)[O-]", "formal charge"),
        ("[13CH4]", "has the mass 13.00"),
    ]:
        with pytest.raises(InputError, match=text):
            run_md(settings_of(engine, structure, tiny_archive), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_lammps_input_refuses_ions(tiny_archive: Path, tmp_path: Path):
    with pytest.raises(InputError, match="charge 1, multiplicity 1"):
        write_lammps_input(
            read_structure("C[NH3+]").atoms, str(tiny_archive), "nve", tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("interface", ["create_system", "openmm-ml"])
def test_openmm_topologies_of_ions_are_refused(interface: str, tiny_archive: Path, tmp_path: Path):
    def make(smiles: str) -> System:
        topology = PDBFile(str(pdb_of(smiles, tmp_path / "a.pdb"))).topology
        if interface == "create_system":
            return create_system(topology, tiny_archive, interface="PythonForce")
        return MLPotential("mlff-student", modelPath=str(tiny_archive)).createSystem(topology)

    for smiles, text in [
        ("CC(=O)[O-]", "charge -1"),
        ("[NH3+]CC(=O)[O-]", "has the formal charge"),
        ("C[CH2]", "C2H5 has 17 electrons"),
    ]:
        with pytest.raises(InputError, match=text):
            make(smiles)
    assert make("C[N+](=O)[O-]").getNumParticles() == 7


def test_deuterium_keeps_its_mass(tiny_archive: Path, tmp_path: Path):
    topology, _ = load_structure("[2H]O[2H]")
    system = create_system(topology, tiny_archive, interface="PythonForce")
    masses = [system.getParticleMass(k).value_in_unit(unit.dalton) for k in range(3)]
    assert masses == pytest.approx([2.014, 15.999, 2.014], abs=1e-3)
    for engine in ("ase", "openmm"):
        output = tmp_path / engine
        run_md(settings_of(engine, "[2H]O[2H]", tiny_archive), output, quiet=True)
        stored = read_structure(str(output / "run.pdb")).atoms
        np.testing.assert_allclose(stored.get_masses(), masses, atol=1e-3)
    with pytest.raises(InputError, match=r"atom \d \(H\) has the mass 2.014"):
        run_md(settings_of("lammps", "[2H]O[2H]", tiny_archive), tmp_path / "lammps", quiet=True)
    assert not (tmp_path / "lammps").exists()
