"""Students as potentials of openmm-ml.

`MLPotential("mlff-student-original")`, or `MLPotential("mlff-student", modelPath="my.pt")`. Loaded
by `import openmmml`, of any user: nothing heavy is imported before a System is made.
"""

import sys
from collections.abc import Iterable
from copy import deepcopy
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory

from mlff_student.core.errors import InputError, check_key

if TYPE_CHECKING:
    import openmm
    from openmm.app import Topology

PREFIX = "mlff-student-"
PRECISIONS = {"single": "float32", "double": "float64"}
# createMixedSystem hands all its options to addForces, those of the embedding among them.
MECHANICAL_EMBEDDING_ARGUMENTS = ("linkAtomDistances",)


class StudentPotentialImplFactory(MLPotentialImplFactory):
    """Makes the potential of a shipped model, or of a file given by modelPath."""

    def createImpl(  # noqa: N802  (openmm-ml's name)
        self, name: str, modelPath: str | None = None, **args: Any
    ) -> "StudentPotentialImpl":
        """Called by `MLPotential(name, modelPath=...)`.

        Raises
        ------
        InputError : arguments that are not known, or a model given twice or not at all.
        """
        check_key(args, ("modelPath",), f"MLPotential({name!r})")
        shipped = name.startswith(PREFIX)
        if shipped == bool(modelPath):
            raise InputError(
                f"{name} is a shipped model and takes no modelPath"
                if shipped
                else "MLPotential('mlff-student') needs modelPath=, a checkpoint or an archive; "
                f"shipped models are {PREFIX}original, {PREFIX}tiny and {PREFIX}ultra_tiny"
            )
        return StudentPotentialImpl(modelPath or name.removeprefix(PREFIX))


class StudentPotentialImpl(MLPotentialImpl):
    """A student, on all atoms of a System or on the ML region of a mixed one."""

    def __init__(self, model: str) -> None:
        self.model = model

    def addForces(  # noqa: N802  (openmm-ml's name)
        self,
        topology: "Topology",
        system: "openmm.System",
        atoms: Iterable[int] | None,
        forceGroup: int,
        *,
        precision: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        backend: str = "auto",
        interface: str = "PythonForce",
        charge: int = 0,
        multiplicity: int = 1,
        **args: Any,
    ) -> None:
        """Called by `createSystem` and `createMixedSystem`.

        Parameters
        ----------
        precision : of the network: "single" (default) or "double"; an exported archive has its own,
            and another is refused.
        device, threads, backend : as of `student_force`.
        interface : as of `student_force`; a PythonForce costs about 0.1 ms a step more.
        charge, multiplicity : must be those of the molecules that the student was trained on.

        Raises
        ------
        InputError : arguments that are not known or a state the student does not describe, and
            those of `student_force`.
        """
        own = signature(self.addForces).parameters.values()
        known = [one.name for one in own if one.kind is Parameter.KEYWORD_ONLY]
        known += MECHANICAL_EMBEDDING_ARGUMENTS
        check_key(args, known, "options of the student")
        if precision is not None and precision not in PRECISIONS:
            raise InputError(f"precision must be 'single' or 'double', not {precision!r}")
        # All labels, of every teacher, are of neutral closed-shell molecules: sampling refuses
        # others, and teachers that ask are told so. No archive can have other values.
        if charge != 0 or multiplicity != 1:
            raise InputError(
                f"charge {charge}, multiplicity {multiplicity}: the students were trained on "
                "neutral closed-shell molecules alone (charge 0, multiplicity 1)"
            )
        import torch

        from .force import student_force
        from .system import bonds_without_strength

        if atoms is None and topology.getPeriodicBoxVectors() is not None:
            system.addForce(bonds_without_strength(topology))
        system.addForce(
            student_force(
                topology,
                self.model,
                atoms=atoms,
                dtype=precision and getattr(torch, PRECISIONS[precision]),
                force_group=forceGroup,
                device=str(device),
                threads=threads,
                backend=backend,
                interface=interface,
            )
        )

    def getSupportedEmbeddings(self) -> list[str]:  # noqa: N802  (openmm-ml's name)
        """Mechanical embedding comes through `createMixedSystem` below."""
        return ["mechanical"]

    def createMixedSystem(  # noqa: N802  (openmm-ml's name)
        self,
        topology: "Topology",
        system: "openmm.System",
        atoms: list[int],
        forceGroup: int,
        interpolate: bool,
        embedding: str,
        returnInfo: bool = False,
        **args: Any,
    ) -> "openmm.System | dict[str, Any]":
        """Mechanical embedding of openmm-ml, with four things added to it.

        openmm-ml 1.8 asks every atom of the topology for its atomic number, and fails on the
        virtual sites of water models; it takes the student's box from the topology, whatever the
        MM part does; it removes the bonds by which a barostat knows the molecules of the ML region;
        and it leaves the derivative by `lambda_interpolate` to the user.

        It copies the MM System, and the student when it interpolates, through XML. No TorchForce
        survives that: `interface="auto"` then takes PythonForce.

        Raises
        ------
        InputError : interpolate with interface="TorchForce", or a TorchForce in the MM System; and
            those of `addForces`.
        """
        from openmm.app.element import hydrogen
        from openmmml.embeddings.mechanicalembedding import MechanicalEmbedding

        from .system import bonds_without_strength

        if _has_torch_force(system):
            raise InputError(
                "the MM System has a TorchForce; openmm-ml copies the System through XML, which "
                "ends the process: make that force with interface='PythonForce', or add it to the "
                "mixed System afterwards"
            )
        if interpolate and args.get("interface") == "TorchForce":
            raise InputError(
                "interpolate=True with interface='TorchForce': openmm-ml copies the force through "
                "XML, which ends the process; leave interface out, or say 'PythonForce'"
            )
        if interpolate and args.get("interface") == "auto":
            args["interface"] = "PythonForce"
        filled = deepcopy(topology)
        bare = [atom.index for atom in filled.atoms() if atom.element is None]
        _set_elements(filled, bare, hydrogen)
        filled.setPeriodicBoxVectors(
            system.getDefaultPeriodicBoxVectors()
            if system.usesPeriodicBoundaryConditions()
            else None
        )
        made = MechanicalEmbedding().createMixedSystem(
            self, filled, system, atoms, forceGroup, interpolate, returnInfo=True, **args
        )
        _set_elements(made["topology"], [made["oldToNew"][index] for index in bare], None)
        made["topology"].setPeriodicBoxVectors(topology.getPeriodicBoxVectors())
        mixed = made["system"]
        if interpolate:
            interpolation = mixed.getForce(mixed.getNumForces() - 1)
            interpolation.addEnergyParameterDerivative("lambda_interpolate")
        if system.usesPeriodicBoundaryConditions():
            mixed.addForce(bonds_without_strength(topology, set(atoms)))
        return made if returnInfo else mixed

    def getMLLongRange(self) -> bool:  # noqa: N802  (openmm-ml's name)
        """A student sees nothing beyond its cutoff."""
        return False


def _has_torch_force(system: "openmm.System") -> bool:
    """Whether a System has a TorchForce, which it can only have once openmmtorch is imported."""
    plugin = sys.modules.get("openmmtorch")
    return plugin is not None and any(map(plugin.TorchForce.isinstance, system.getForces()))


def _set_elements(topology: "Topology", atoms: list[int], element: Any) -> None:
    members = list(topology.atoms())
    for index in atoms:
        members[index].element = element
