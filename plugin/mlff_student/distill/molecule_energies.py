"""Constants that are fitted to the energy of each molecule while a student is trained.

The energies of a teacher need not be comparable between different molecules; those of SO3LR are
not. They then contain a constant for each molecule, on which no force depends. A student that has
to learn these constants learns forces worse, and does not predict the constants of other molecules.
So the energy of a frame is compared with the label plus the constants of its molecules: the student
learns how energies differ between conformers, distances and densities of the same molecules.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mlff_student.distill.dataset import LabelledFrames

# Part of the error of a frame that its constants take over at each visit. Half of it is taken over
# in 7 visits. It must stay below 2 divided by the number of frames of one molecule in a batch.
RATE = 0.1


class MoleculeEnergies(NamedTuple):
    """The constants of M molecules, and which of them T frames contain.

    Attributes
    ----------
    names : list of str
        (M,), canonical SMILES or another identity of each molecule.
    energies : Tensor
        (M,) float32, constant of each molecule, eV.
    gradient : Tensor
        (M,) float32, sum of the changes that a batch asks for, eV.
    members : Tensor
        (T, K) int64, molecules of each frame.
    counts : Tensor
        (T, K) float32, how often the frame contains each of them; 0 for padding.
    """

    names: list[str]
    energies: Tensor
    gradient: Tensor
    members: Tensor
    counts: Tensor

    def of(self, chosen: Tensor) -> Tensor:
        """Return (B,) the sum of the constants of each of the chosen frames, eV.

        Parameters
        ----------
        chosen : Tensor
            (B,) int64, frames; -1 for padding, whose sum has no meaning.
        """
        return (self.counts[chosen] * self.energies[self.members[chosen]]).sum(1)

    def collect(self, chosen: Tensor, errors: Tensor) -> None:
        """Add the changes that reduce the errors of the chosen frames to `gradient`.

        The changes are those of the normalised least-mean-squares method (Widrow & Hoff 1960).

        Parameters
        ----------
        chosen : Tensor
            (B,) int64, frames; -1 for padding.
        errors : Tensor
            (B,) predicted energy minus the label and the constants, eV.
        """
        counts = torch.where(chosen[:, None] < 0, 0.0, self.counts[chosen])
        scaled = errors[:, None] * counts / counts.square().sum(1, keepdim=True).clamp(min=1.0)
        self.gradient.index_add_(0, self.members[chosen].flatten(), scaled.flatten())

    def update(self, good: Tensor) -> None:
        """Change the constants by `gradient` if `good`, a () bool tensor, is true."""
        self.energies.add_(torch.where(good, RATE * self.gradient, 0.0))

    def state_dict(self) -> dict[str, float]:
        """Return the constant of each molecule, eV."""
        return dict(zip(self.names, self.energies.tolist(), strict=True))

    def load_state_dict(self, energies: Mapping[str, float]) -> None:
        """Restore the constants that `state_dict` returned; those of other molecules are 0."""
        known = [energies.get(name, 0.0) for name in self.names]
        self.energies.copy_(torch.tensor(known))


def molecule_energies(
    datasets: Sequence[LabelledFrames], device: torch.device | str = "cpu"
) -> MoleculeEnergies:
    """Return constants of 0 for all molecules of the frames.

    Parameters
    ----------
    datasets : sequence of LabelledFrames
        Frames in the order in which they are joined. The identities of the molecules of a structure
        are joined by points.
    device : torch.device or str
        Device of the tensors.
    """
    parts = [
        [Counter(identity.split(".")) for identity in frames.identities] for frames in datasets
    ]
    contents = [content for part in parts for content in part]
    names = sorted(set().union(*contents))
    index = {name: k for k, name in enumerate(names)}
    width = max(map(len, contents))
    members = torch.zeros(len(contents), width, dtype=torch.int64)
    counts = torch.zeros(len(contents), width)
    for row, content in enumerate(contents):
        members[row, : len(content)] = torch.tensor([index[name] for name in content])
        counts[row, : len(content)] = torch.tensor([float(n) for n in content.values()])
    firsts = [sum(map(len, parts[:k])) for k in range(len(parts))]
    structures = torch.cat(
        [frames.molecule + first for frames, first in zip(datasets, firsts, strict=True)]
    )
    return MoleculeEnergies(
        names=names,
        energies=torch.zeros(len(names), device=device),
        gradient=torch.zeros(len(names), device=device),
        members=members[structures].to(device),
        counts=counts[structures].to(device),
    )
