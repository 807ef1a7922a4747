"""Constants of the energies of molecules."""

import torch

from mlff_student.distill.dataset import LabelledFrames
from mlff_student.distill.graphs import relative_to_mean
from mlff_student.distill.molecule_energies import MoleculeEnergies, molecule_energies

WATER, METHANOL, ACETATE = 3.0, -2.0, 40.0  # constants of a teacher, eV
CONTENTS = {
    "O": WATER,
    "CO": METHANOL,
    "CO.O.O": METHANOL + 2 * WATER,
    "O.CC(=O)[O-]": WATER + ACETATE,
}


def constants(identities: list[str], molecule: list[int]) -> MoleculeEnergies:
    used = {"identities": identities, "molecule": torch.tensor(molecule)}
    frames = LabelledFrames(**dict.fromkeys(LabelledFrames._fields) | used)
    return molecule_energies([frames])


def test_constants_are_found_from_the_energies_of_complexes():
    """Frames of four structures whose student differs from the teacher by constants only."""
    frames = [0, 1, 1, 2, 3, 3, 3]
    fitted = constants(list(CONTENTS), frames)
    target = torch.tensor([list(CONTENTS.values())[k] for k in frames])
    rows = torch.arange(len(frames))
    for _ in range(1500):
        fitted.gradient.zero_()
        fitted.collect(rows, target - fitted.of(rows))
        fitted.update(torch.tensor(True))
    torch.testing.assert_close(fitted.of(rows), target, rtol=0.0, atol=1e-4)
    expected = {"O": WATER, "CO": METHANOL, "CC(=O)[O-]": ACETATE}
    found = fitted.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(found[name] - value) < 1e-4, name


def test_padding_and_failed_steps_change_no_constant():
    fitted = constants(["O", "CO"], [0, 1])
    fitted.collect(torch.tensor([-1, 0]), torch.tensor([5.0, 1.0]))
    fitted.update(torch.tensor(False))
    assert not fitted.energies.any()
    fitted.update(torch.tensor(True))
    assert fitted.of(torch.tensor([1])) == 0.0
    assert fitted.of(torch.tensor([0])) > 0.0


def test_constants_are_restored_by_name():
    fitted = constants(["O", "CO"], [0, 1])
    fitted.load_state_dict({"CO": 2.0, "N": 5.0})
    assert fitted.state_dict() == {"CO": 2.0, "O": 0.0}


def test_relative_to_mean_of_groups():
    values = relative_to_mean(torch.tensor([1.0, 3.0, 10.0, 14.0]), torch.tensor([7, 7, 2, 2]))
    assert values.tolist() == [-1.0, 1.0, -2.0, 2.0]
