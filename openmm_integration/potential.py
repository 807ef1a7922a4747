"""Makes students potentials of openmm-ml.

A user writes `MLPotential("mlff-student-original")` or `MLPotential("mlff-student",
modelPath="my.pt")`. Every `import openmmml` loads this module, so heavy packages are imported only
when a System is made.
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
# createMixedSystem passes the options of the embedding to addForces too.
MECHANICAL_EMBEDDING_ARGUMENTS = ("linkAtomDistances",)


class StudentPotentialImplFactory(MLPotentialImplFactory):
    """Makes the potential of a shipped model, or of the file `modelPath`."""

    def createImpl(  # noqa: N802  (openmm-ml's name)
        self, name: str, modelPath: str | None = None, **args: Any
    ) -> "StudentPotentialImpl":
        """Make the potential; openmm-ml calls this for `MLPotential(name, modelPath=...)`.

        Parameters
        ----------
        name : str
            "mlff-student-" and the name of a shipped model, or "mlff-student".
        modelPath : str, optional
            Path of a checkpoint or archive, for "mlff-student".
        **args : Any
            No other arguments are allowed.

        Raises
        ------
        InputError
            An argument is unknown, or there are two models or none.
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
    """A student that acts on all atoms of a System, or on the ML region of a mixed System.

    Parameters
    ----------
    model : str
        Shipped name, or path of a checkpoint or archive.
    """

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
        """Add the student to a System; `createSystem` and `createMixedSystem` call this.

        Parameters
        ----------
        topology : Topology
            OpenMM topology.
        system : openmm.System
            System that receives the force.
        atoms : Iterable[int], optional
            Indices of the atoms that the student acts on; all atoms if None.
        forceGroup : int
            Force group of the force.
        precision : str, optional
            Precision of the network, "single" (default) or "double". An exported archive has a
            precision already; another one is an error.
        device : str
            Torch device; see `student_force`.
        threads : int, optional
            Number of threads; see `student_force`.
        backend : str
            Compute backend; see `student_force`.
        interface : str
            Kind of the force; see `student_force`.
        charge : int
            Charge of the student's atoms; see `student_force`.
        multiplicity : int
            Spin multiplicity of the student's atoms; see `student_force`.
        **args : Any
            Options of mechanical embedding, which are not used here.

        Raises
        ------
        InputError
            An argument is unknown, the charge or multiplicity is not that of the training, or
            `student_force` refuses its arguments.
        """
        own = signature(self.addForces).parameters.values()
        known = [option.name for option in own if option.kind is Parameter.KEYWORD_ONLY]
        known += MECHANICAL_EMBEDDING_ARGUMENTS
        check_key(args, known, "options of the student")
        if precision is not None and precision not in PRECISIONS:
            raise InputError(f"precision must be 'single' or 'double', not {precision!r}")
        from .force import student_force
        from .system import bonds_without_strength

        if atoms is None and topology.getPeriodicBoxVectors() is not None:
            system.addForce(bonds_without_strength(topology))
        system.addForce(
            student_force(
                topology,
                self.model,
                atoms=atoms,
                dtype=PRECISIONS[precision] if precision else None,
                force_group=forceGroup,
                device=str(device),
                threads=threads,
                backend=backend,
                interface=interface,
                charge=charge,
                multiplicity=multiplicity,
            )
        )

    def getSupportedEmbeddings(self) -> list[str]:  # noqa: N802  (openmm-ml's name)
        """Return the supported embeddings: mechanical embedding, by `createMixedSystem`."""
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
        """Make a mixed System by the mechanical embedding of openmm-ml, with four corrections.

        openmm-ml 1.8 reads the atomic number of every atom, which fails for the virtual sites of
        water models. It takes the student's box from the topology, even if the MM System has none.
        It removes the bonds from which a barostat knows the molecules of the ML region. It does not
        ask for the derivative by `lambda_interpolate`.

        openmm-ml copies the MM System through XML, and with `interpolate` the student too. A
        TorchForce does not survive this, so `interface="auto"` is then PythonForce.

        Parameters
        ----------
        topology : Topology
            OpenMM topology of the MM System.
        system : openmm.System
            MM System.
        atoms : list[int]
            Indices of the atoms of the ML region.
        forceGroup : int
            Force group of the student.
        interpolate : bool
            Whether the parameter `lambda_interpolate` changes from the MM to the ML description.
        embedding : str
            Name of the embedding; only "mechanical" exists.
        returnInfo : bool
            Whether to return the dictionary of openmm-ml instead of the System.
        **args : Any
            Options of `addForces` and of the embedding.

        Returns
        -------
        openmm.System | dict[str, Any]
            The mixed System or, with `returnInfo`, a dictionary with it and the new indices.

        Raises
        ------
        InputError
            `interpolate` is used with interface="TorchForce", the MM System has a TorchForce, or
            `addForces` refuses its arguments.
        """
        from openmm.app.element import hydrogen
        from openmmml.embeddings.mechanicalembedding import MechanicalEmbedding

        from .system import bonds_without_strength

        if _has_torch_force(system):
            raise InputError(
                "the MM System has a TorchForce; openmm-ml copies the System through XML, which "
                "would end the process: make that force with interface='PythonForce', or add it to "
                "the mixed System afterwards"
            )
        if interpolate and args.get("interface") == "TorchForce":
            raise InputError(
                "interpolate=True with interface='TorchForce': openmm-ml copies the force through "
                "XML, which would end the process; leave interface out, or use 'PythonForce'"
            )
        if interpolate and args.get("interface") == "auto":
            args["interface"] = "PythonForce"
        filled = deepcopy(topology)
        virtual_sites = [atom.index for atom in filled.atoms() if atom.element is None]
        _set_elements(filled, virtual_sites, hydrogen)
        filled.setPeriodicBoxVectors(
            system.getDefaultPeriodicBoxVectors()
            if system.usesPeriodicBoundaryConditions()
            else None
        )
        info = MechanicalEmbedding().createMixedSystem(
            self, filled, system, atoms, forceGroup, interpolate, returnInfo=True, **args
        )
        mixed, mixed_topology = info["system"], info["topology"]
        _set_elements(mixed_topology, [info["oldToNew"][index] for index in virtual_sites], None)
        mixed_topology.setPeriodicBoxVectors(topology.getPeriodicBoxVectors())
        if interpolate:
            interpolation = mixed.getForce(mixed.getNumForces() - 1)
            interpolation.addEnergyParameterDerivative("lambda_interpolate")
        if system.usesPeriodicBoundaryConditions():
            mixed.addForce(bonds_without_strength(topology, set(atoms)))
        return info if returnInfo else mixed

    def getMLLongRange(self) -> bool:  # noqa: N802  (openmm-ml's name)
        """Return False: a student has no interactions beyond its cutoff."""
        return False


def _has_torch_force(system: "openmm.System") -> bool:
    """Return whether a System has a TorchForce; without openmmtorch imported it cannot have one."""
    plugin = sys.modules.get("openmmtorch")
    return plugin is not None and any(map(plugin.TorchForce.isinstance, system.getForces()))


def _set_elements(topology: "Topology", atoms: list[int], element: Any) -> None:
    members = list(topology.atoms())
    for index in atoms:
        members[index].element = element
