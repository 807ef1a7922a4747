"""Active learning: which structures a round draws, and which frames a committee proposes.

The committees are calculators with constant forces, so that what the atoms do is known.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms

from mlff_student.core.errors import InputError
from mlff_student.distill.recipe import CONDENSED_RECIPE, Rounds, read_recipe
from mlff_student.distill.rounds import draw_structures, propose
from mlff_student.distill.sources import Source, bonds_of, build
from mlff_student.structures.checks import perceive_bonds

SETTINGS = Rounds(count=1, model="tiny", committee=2, steps=1, structures=40, ps=0.02, frames=3)
ALL_FRAMES = replace(SETTINGS, frames=100)
COLD = [1e-6]  # kelvin; thermal motion does not matter
SIZES = {"molecule": 60, "dimer": 20, "liquid": 15, "file": 5}
SOURCES = [
    Source(f"{group}_{index}", str(index), group, group, "train")
    for group, count in SIZES.items()
    for index in range(count)
]


class Pull(Calculator):
    """Constant forces on the atoms, eV/angstrom."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, forces: Any) -> None:
        super().__init__()
        self.constant = np.array(forces, float)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = None,
        system_changes: Any = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        energy = -float((self.constant * self.atoms.positions).sum())
        self.results = {"energy": energy, "forces": self.constant.copy()}


def from_file(atoms: Atoms) -> Source:
    return Source("case", "case", "file", "file", "train", starts=(atoms,))


# --- Frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize("periodic", [True, False])
def test_atoms_that_collide_through_a_face_of_the_box_end_the_md(periodic: bool):
    """Pulled apart, the atoms meet in a periodic box, and only there."""
    atoms = Atoms("He2", positions=[[5, 5, 1], [5, 5, 9]], cell=[10.0] * 3, pbc=periodic)
    member = Pull([[0, 0, -40], [0, 0, 40]])
    proposals = propose(from_file(atoms), [member, member], ALL_FRAMES, COLD, seed=1)
    assert (proposals[0].disagreement == np.inf) == periodic
    assert {proposal.disagreement for proposal in proposals[1:]} == {0.0}
    if periodic:
        gap = proposals[0].atoms.get_distance(0, 1, mic=True)
        assert 0.3 < gap < 2.0  # the frame before the collision
    assert len({proposal.atoms.positions.tobytes() for proposal in proposals}) == len(proposals)


@pytest.mark.parametrize("pull", [0.0, 30.0])
def test_a_bond_through_a_face_of_the_box_may_move_but_not_break(pull: float):
    """In the file the molecule is cut by the face of the box."""
    atoms = Atoms("N2", positions=[[5, 5, 0.4], [5, 5, 9.3]], cell=[10.0] * 3, pbc=True)
    member = Pull([[20, 0, pull], [20, 0, -pull]])
    proposals = propose(from_file(atoms), [member, member], ALL_FRAMES, COLD, seed=1)
    assert (proposals[0].disagreement == np.inf) == bool(pull)
    for proposal in proposals:
        assert proposal.atoms.get_distance(0, 1, mic=True) == pytest.approx(1.1, abs=0.5)
    if not pull:
        assert proposals[-1].atoms.positions[0, 0] - 5.0 > 0.1


def test_disagreement_is_the_largest_deviation_of_a_force():
    water = molecule("H2O")
    forces = np.zeros((2, 3, 3))
    forces[:, 1] = [[0.03, 0.0, 0.04], [-0.03, 0.0, -0.04]]
    members = [Pull(each) for each in forces]
    proposals = propose(from_file(water), members, SETTINGS, COLD, seed=1)
    assert [proposal.disagreement for proposal in proposals] == pytest.approx([0.05] * 3)


def test_frames_state_the_charge_and_nothing_else():
    """The teacher needs the charge. A student would refuse it, and velocities are of no use."""
    hydroxide = Atoms("OH", positions=[[0, 0, 0], [0, 0, 0.97]], info={"Total_Charge": -1, "a": 2})
    hydroxide.set_constraint(FixAtoms([0]))
    member = Pull([[0.5, 0, 0], [0.5, 0, 0]])
    proposals = propose(from_file(hydroxide), [member, member], ALL_FRAMES, COLD, seed=1)
    for proposal in proposals:
        assert proposal.atoms.info == {"charge": -1.0}
        assert set(proposal.atoms.arrays) == {"numbers", "positions"}
        assert not proposal.atoms.constraints
    assert max(proposal.atoms.positions[0, 0] for proposal in proposals) > 0.001


def test_seed_decides_all_draws():
    source = Source("m", "CO", "small", "molecule", "train", ("CO",), conformers=3)
    members = [Pull(np.zeros((6, 3))), Pull(np.full((6, 3), 0.1))]
    one, same, other = (
        propose(source, members, SETTINGS, [300.0, 600.0], seed)[0].atoms.positions
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_bonds_of_a_packed_box_are_those_of_its_molecules():
    """Where molecules touch, distances alone would give more bonds."""
    smiles = ("CO",) * 4 + ("O",) * 6
    source = Source("box", "box", "liquid", "liquid", "train", smiles, dilation=(0.25, 0.25))
    (box,) = build(source, 3)
    bonds = bonds_of(source, box)
    assert len(bonds) == 4 * 5 + 6 * 2
    assert set(bonds) < set(perceive_bonds(box))
    members = [Pull(np.zeros((len(box), 3)))] * 2
    proposals = propose(source, members, SETTINGS, COLD, seed=3)
    assert {proposal.disagreement for proposal in proposals} == {0.0}


# --- Structures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, {"molecule": 24, "dimer": 8, "liquid": 6, "file": 2}),
        ({"molecule": 1.0, "liquid": 1.0}, {"molecule": 20, "liquid": 15}),
        ({"cluster": 1.0, "file": 0.5, "dimer": 1.5}, {"dimer": 20, "file": 5}),
    ],
    ids=["in proportion", "no more than there are", "a group that is missing"],
)
def test_groups_have_their_shares(weights: dict[str, float], expected: dict[str, int]):
    drawn = draw_structures(SOURCES, replace(SETTINGS, weights=weights), 7, 1)
    assert Counter(source.group for source in drawn) == expected
    assert len({source.name for source in drawn}) == len(drawn)
    assert len({source.group for source in drawn[: len(drawn) // 2]}) == len(expected)  # mixed


def test_rounds_draw_other_structures():
    first, again, second = (draw_structures(SOURCES, SETTINGS, 7, number) for number in (1, 1, 2))
    assert first == again
    assert set(first) != set(second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"liquids": 1.0}}, "rounds.weights: .*did you mean 'liquid'"),
        ({"weights": {"held_out": 1.0}}, "rounds.weights: "),
        ({"weights": {"liquid": 0.0}}, "not all 0"),
        ({"weights": {"liquid": -1.0, "file": 2.0}}, "expected 0 or more"),
        ({"ps": 0.0}, "expected numbers above 0"),
        ({"structures": 0}, "expected numbers above 0"),
    ],
)
def test_settings_without_sense_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        replace(SETTINGS, **changes)


def test_recipe_of_the_condensed_phase_runs_rounds_in_all_its_groups():
    recipe = read_recipe(CONDENSED_RECIPE)
    assert recipe.rounds is not None
    assert recipe.rounds.model in recipe.training
    for group, weight in recipe.rounds.weights.items():
        sampling = recipe.sampling[group].md
        assert weight > 0
        assert sampling is not None
        assert sampling.temperatures_K
