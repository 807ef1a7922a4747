"""Students in torch-sim: its own check of models, and the numbers of the ASE calculator."""

import ase.build
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress

from mlff_student import StudentForceFieldCalculator
from mlff_student.core.errors import InputError

ts = pytest.importorskip("torch_sim", reason="needs: pip install torch-sim-atomistic")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    from mlff_student.engines.torch_sim import TorchSimModel

    return TorchSimModel("tiny")


def state_of(structures: list[Atoms], dtype: torch.dtype = torch.float64):
    return ts.io.atoms_to_state(structures, CPU, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_check_of_models(dtype, monkeypatch):
    """The check takes metals, which no student knows; here they are hydrogen at their places."""
    from torch_sim.models.interface import validate_model_outputs

    from mlff_student.engines.torch_sim import TorchSimModel

    def hydrogen(*arguments, bulk=ase.build.bulk, **options) -> Atoms:
        atoms = bulk(*arguments, **options)
        atoms.numbers[:] = 1
        return atoms

    monkeypatch.setattr(ase.build, "bulk", hydrogen)
    model = TorchSimModel("tiny", dtype=dtype, compute_forces=False, compute_stress=False)
    validate_model_outputs(model, CPU, dtype)
    assert model.compute_forces and model.compute_stress


def test_numbers_of_the_ase_calculator(model, structures):
    calculator = StudentForceFieldCalculator("tiny")
    boxes = [structures["triclinic"], structures["water_box"]]
    for many in (boxes, [structures["water"], structures["molecule32"], Atoms("N")]):
        results = model(state_of(many))
        expected = calculator.calculate_batch(many)
        energies = [each["energy"] for each in expected]
        assert results["energy"].numpy() == pytest.approx(energies, abs=1e-5)
        forces = np.concatenate([each["forces"] for each in expected])
        assert results["forces"].numpy() == pytest.approx(forces, abs=3e-5)
    stresses = [full_3x3_to_voigt_6_stress(s) for s in model(state_of(boxes))["stress"].numpy()]
    expected = [each["stress"] for each in calculator.calculate_batch(boxes)]
    assert np.array(stresses) == pytest.approx(np.array(expected), abs=1e-6)
    assert results["stress"].isnan().all()  # of open structures, which have no volume


def test_a_run_conserves_the_energy(model, structures):
    """Two molecules for 0.1 ps, in which the potential energy changes by several 0.01 eV."""
    options = {"model": model, "timestep": 0.0005, "temperature": 300}
    options["integrator"] = ts.nve if hasattr(ts, "nve") else ts.Integrator.nve
    begin = ts.integrate(
        system=state_of([structures["ethanol"], structures["water"]]), n_steps=1, **options
    )
    end = ts.integrate(system=begin, n_steps=200, **options)
    assert (end.positions - begin.positions).abs().max() > 0.05
    totals = []
    for state in (begin, end):
        kinetic = 0.5 * state.momenta.square().sum(1) / state.masses
        totals.append(
            state.energy + torch.zeros(2).double().index_add(0, state.system_idx, kinetic)
        )
    assert totals[1].numpy() == pytest.approx(totals[0].numpy(), abs=0.005)


def test_systems_that_are_refused(model, structures):
    water = structures["water"]
    silane, radical, broken = Atoms("SiH4", np.eye(5, 3) * 1.5), water[[0, 1]], water.copy()
    broken.positions[1] = np.nan
    for atoms, message in (
        (silane, "system 1: the student does not know Si"),
        (radical, "system 1: .*odd number"),
        (broken, r"system 1: atom 1 \(H\) has the position"),
    ):
        with pytest.raises(InputError, match=message):
            model(state_of([water, atoms]))
    state = state_of([water])
    state.positions[1] = state.positions[0]  # after the model has seen water
    with pytest.raises(InputError, match="system 0: the energy is not finite; do two atoms"):
        model(state)
