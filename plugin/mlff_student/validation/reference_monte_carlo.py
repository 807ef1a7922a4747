"""The canonical ensemble of a slow potential, reached on the trajectories of a fast one.

Hybrid Monte Carlo (Duane, Kennedy, Pendleton & Roweth 1987, doi:10.1016/0370-2693(87)91197-X) with
the forces of another potential as guide, as in Iftimie, Salahub, Wei & Schofield 2000
(doi:10.1063/1.1289534): velocity Verlet is reversible and keeps volume in phase space whatever the
forces, so that accepting its end with min(1, exp(-dH / kT)), H being the target's, leaves the
target's ensemble as it is. A poor guide costs acceptance: the run is then too short, and not wrong.
Where acceptance is low, teach a student the very box from the target's labels, as in self-learning
hybrid Monte Carlo (Nagai, Okumura, Kobayashi & Shiga 2020, doi:10.1103/PhysRevB.102.041124), and
let it guide.
"""

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from mlff_student.core.units import KB

# What calculators raise of a geometry: ASE's CalculatorError and what torch says are RuntimeError,
# LinAlgError and InputError (positions that a student refuses) ValueError.
CALCULATOR_ERRORS = (RuntimeError, ValueError, FloatingPointError)
KEPT = ("energy", "forces", "stress")  # of the target's results


class HybridMonteCarlo:
    """Moves atoms as ASE's dynamics do; `run` makes one move.

    Parameters
    ----------
    atoms : with the target as their calculator; it is asked once a move, and `atoms` have its last
        energy, forces and, where it gives one, stress after each.
    guide : asked at every step.
    timestep : of the guide's dynamics, ASE's units.
    rng : draws momenta, with the centre of mass at rest, and what is accepted.
    """

    def __init__(
        self,
        atoms: Atoms,
        guide: Calculator,
        timestep: float,
        *,
        temperature_K: float,
        rng: np.random.Generator,
    ) -> None:
        self.atoms = atoms
        self.target = atoms.calc
        self.guide = guide
        self.timestep = timestep
        self.temperature_K = temperature_K
        self.rng = rng

    def run(self, steps: int) -> bool:
        """One move of so many steps on average; whether it was accepted.

        Lengths are drawn between half and one and a half of that: of one length, a mode whose half
        periods it is a multiple of would never mix (Mackenzie 1989,
        Phys. Lett. B 226, 369). A move that ends where one of the calculators fails is rejected.
        """
        thermalize_momenta(self.atoms, temperature_K=self.temperature_K, rng=self.rng)
        Stationary(self.atoms, preserve_temperature=False)
        before = self.atoms.get_total_energy()
        length = self.rng.integers((steps + 1) // 2, steps + steps // 2 + 1)
        trial = self.atoms.copy()
        trial.calc = self.guide
        try:
            VelocityVerlet(trial, self.timestep).run(length)
            trial.calc = self.target
            change = trial.get_total_energy() - before
        except CALCULATOR_ERRORS:
            change = np.inf
        accepted = self.rng.random() < np.exp(-max(change, 0.0) / (KB * self.temperature_K))
        state = trial if accepted else self.atoms
        state.get_forces()  # whatever was not computed with the energy
        results = {key: state.calc.results[key] for key in KEPT if key in state.calc.results}
        self.atoms.positions = state.positions
        self.atoms.set_momenta(state.get_momenta())
        self.atoms.calc = SinglePointCalculator(self.atoms, **results)
        return bool(accepted)
