"""ASE calculator that evaluates a student from a checkpoint or an archive."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from time import perf_counter
from typing import Any
from weakref import ref

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import atomic_numbers, covalent_radii
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from mlff_student.archive.backends import evaluator
from mlff_student.archive.graph import (
    Graph,
    atom_virials,
    edge_search,
    edges_of,
    evaluate_graph,
    join,
    structure_virials,
    within_memory,
)
from mlff_student.archive.registry import archive_of
from mlff_student.core.errors import InputError, check_key
from mlff_student.structures.checks import (
    FARTHEST,
    SHORTEST_DISTANCE,
    allows_charges,
    bare_atoms,
    charge_and_multiplicity,
    check_cell,
    check_charge,
    check_distances,
    check_electrons,
    check_structure,
)

SKIN = 1.0  # skin of the neighbour list, angstrom; as in the native kernels
# Memory of a batch on the CPU: of 2 to 128 MB, the fastest or close to it with both backends.
CPU_BATCH_MB = 32.0
GPU_BATCH_SHARE = 0.25  # memory of a batch on a GPU, as a fraction of the free memory


class StudentForceFieldCalculator(Calculator):
    """ASE calculator of a student: energy, forces, stress, energies and stresses of atoms.

    The native kernels need no torch. On the CPU the neighbour list has a skin, so that most steps
    of MD need no search.

    A calculator can be pickled and sent to other processes; the weights are included. Calculators
    can be made in several threads at once, one for each thread: a calculator holds one structure.

    A new structure is checked (`mlff_student.structures.checks.check_structure`). During a run only
    a structure that cannot be evaluated is an error: the atoms of the Atoms object that was
    evaluated last may come closer than 0.3 angstrom, and atoms of the same elements may have
    stretched bonds, because minimisers try such steps.

    Ions and radicals are refused, unless the model was trained on them. The charge and the
    multiplicity are those that a structure states (`atoms.info["charge"]`, initial charges; see
    `mlff_student.structures.checks.charge_and_multiplicity`), and they are looked at in every call.

    Parameters
    ----------
    model : str | Path, optional
        Shipped name, or path of a checkpoint or archive; "original" if neither this nor
        `checkpoint_path` is given.
    device : str
        Torch device, such as "cpu" or "cuda".
    dtype : str | torch.dtype, optional
        Precision of the network of a checkpoint, "float32" (default) or "float64", which needs
        torch. An exported archive has a precision already; another one is an error.
    backend : str
        Compute backend, "native", "portable" (which needs torch) or "auto"; see
        `mlff_student.archive.backends.evaluator`.
    threads : int, optional
        Threads of the native kernels; if not given, OMP_NUM_THREADS or, without it, the number of
        CPUs that this process may use.
    checkpoint_path : str | Path, optional
        Another name of `model`; only one of the two may be given.
    enable_stress : bool
        Whether the results include stress and stresses.
    enable_timing : bool
        Whether to store the time of every calculation; see `get_timing_stats`.
    batch_memory_mb : float, optional
        Memory that `calculate_batch` uses for a batch, MB. The default is 32 on the CPU, and a
        quarter of the free memory on a GPU.
    charge, multiplicity : float
        Total charge (elementary charges) and spin multiplicity; other values than 0 and 1 are an
        error, unless the model was trained on ions and radicals.
    trust : bool
        Whether to run the TorchScript of an archive file, by the portable backend, instead of the
        code of this version. Use this only for files from people whom you trust.
    **kwargs : Any
        Options of ase.calculators.calculator.Calculator; any other name is an error.

    Raises
    ------
    ArchiveError
        The model cannot be found or read.
    MissingDependencyError
        `backend` is "native" and the native kernels cannot be used, or torch is needed but not
        installed.
    InputError
        An option is unusable or, in a calculation, the structure is.
    """

    name = "mlff_student"
    parameters: dict[str, Any]
    implemented_properties: list[str] = [  # noqa: RUF012 (as ASE has it)
        "energy",
        "free_energy",
        "forces",
        "stress",
        "energies",
        "stresses",
    ]

    def __init__(
        self,
        model: str | Path | None = None,
        device: str = "cpu",
        dtype: Any = None,
        backend: str = "auto",
        *,
        threads: int | None = None,
        checkpoint_path: str | Path | None = None,
        enable_stress: bool = True,
        enable_timing: bool = False,
        batch_memory_mb: float | None = None,
        charge: float = 0,
        multiplicity: float = 1,
        trust: bool = False,
        **kwargs: Any,
    ) -> None:
        options = [*signature(StudentForceFieldCalculator).parameters]
        options += signature(Calculator).parameters
        check_key(kwargs, [name for name in options if name != "kwargs"], type(self).__name__)
        super().__init__(**kwargs)
        if model is not None and checkpoint_path is not None:
            raise InputError(
                f"give model={model!r} or checkpoint_path={checkpoint_path!r}, not both"
            )
        if batch_memory_mb is not None and not 0.0 < batch_memory_mb < float("inf"):
            raise InputError(f"batch_memory_mb must be positive, got {batch_memory_mb}")
        source = model if model is not None else checkpoint_path
        source = "original" if source is None else source
        self.device = str(device)
        self.enable_stress = enable_stress
        self.enable_timing = enable_timing
        self.batch_memory_mb = batch_memory_mb
        self.threads = threads
        self.archive = archive_of(source, dtype, trust=trust)
        check_charge(charge, multiplicity, charged=allows_charges(self.archive.metadata))
        self._charge = charge
        self.parameters.update(
            model=str(source),
            device=self.device,
            dtype=self.archive.metadata["dtype"],
            backend=backend,
        )
        self._seconds = array("d")
        self._start()
        if not enable_stress:
            without = {"stress", "stresses"}
            self.implemented_properties = [
                name for name in type(self).implemented_properties if name not in without
            ]

    def _start(self) -> None:
        """Make the members that are not pickled."""
        self.evaluator = evaluator(
            self.archive, self.parameters["backend"], self.device, self.threads
        )
        self.backend = self.evaluator.backend
        self._charged = allows_charges(self.archive.metadata)
        self._seen: ref[Atoms] | None = None  # the object that was evaluated last
        self._search = edge_search(self.archive.metadata["cutoff"], SKIN)

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("evaluator", "_search", "_seen")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def __repr__(self) -> str:
        facts = self.archive.metadata
        return (
            f"{type(self).__name__}({facts['name']!r}, {facts['parameters']:,} parameters, "
            f"teacher {facts['teacher']}, elements {' '.join(facts['elements'])}, "
            f"backend={self.backend!r}, device={self.device!r}, dtype={facts['dtype']!r})"
        )

    @property
    def allowed_atomic_numbers(self) -> set[int]:
        """Atomic numbers of the elements that the student knows; mlipaudit asks for them."""
        return {atomic_numbers[symbol] for symbol in self.archive.metadata["elements"]}

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Refuse changes of parameters, which belong to the loaded network; ASE calls this.

        Raises
        ------
        InputError
            A parameter would change.
        """
        known = self.parameters
        if changed := [k for k, v in kwargs.items() if k not in known or known[k] != v]:
            raise InputError(
                f"{', '.join(changed)} cannot be set afterwards; make a new {type(self).__name__}"
            )
        return {}

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return what changed since the last call; ASE calls this, but does not look at `info`.

        Arrays are compared exactly, whatever `tol` is: ASE's own comparison with a tolerance took
        half of the time of a step of 20 atoms.

        Raises
        ------
        InputError
            The charge that the structure states is not a number.
        """
        if self.atoms is None:
            return list(all_changes)
        before, after = _state(self.atoms), _state(atoms)
        changes = [name for name in all_changes if not np.array_equal(before[name], after[name])]
        if charge_and_multiplicity(atoms) != charge_and_multiplicity(self.atoms):
            changes.append("initial_charges")
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute the properties of a structure and store them in `results`; ASE calls this.

        Raises
        ------
        InputError
            The structure is unusable.
        """
        start = perf_counter()
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        try:
            self._check(atoms, system_changes)
            self.results = self._results(self.atoms, "stresses" in (properties or ()))
        except Exception:
            self.atoms = self._seen = None  # so that the next call checks it again
            self.reset()
            raise
        if self.enable_timing:
            self._seconds.append(perf_counter() - start)

    def _check(self, caller: Atoms | None, system_changes: list[str]) -> None:
        """Check everything of a new structure; of a known one, only whether it can be evaluated.

        During a run atoms may come closer, and bonds may stretch more, than in a structure at the
        start: a minimiser tries such steps, and the repulsion drives the atoms apart again.
        """
        assert self.atoms is not None
        known = self._seen is not None and caller is self._seen()
        self._seen = None if caller is None else ref(caller)
        changed = set(system_changes)
        placed = np.abs(self.atoms.positions).max(initial=0.0) < FARTHEST  # False for NaN
        if not placed or changed & {"numbers", "pbc"} or ("cell" in changed and not known):
            elements = self.archive.metadata["elements"]
            check_structure(self.atoms, elements, charged=self._charged, charge=self._charge)
            return
        if "cell" in changed:
            check_cell(self.atoms)
        elif not known:
            check_distances(self.atoms)
        if not known or changed & {"initial_charges", "initial_magmoms"}:
            check_electrons(self.atoms, charged=self._charged, charge=self._charge)

    def _results(self, atoms: Atoms, with_stresses: bool) -> dict[str, Any]:
        """Return the results of one structure with the keys of ASE."""
        cell = atoms.cell.array
        if self.backend == "portable" and self.device == "cpu":  # a list with a skin is faster
            index, vectors = edges_of(atoms, self.archive.metadata["cutoff"], self._search)
            graph = Graph(vectors, index, atoms.numbers, np.zeros(len(atoms), dtype=np.int64), 1)
            energies, forces, gradient = evaluate_graph(self.evaluator, graph)
            virial = structure_virials(graph, gradient)[0]
            virials = atom_virials(graph, gradient) if with_stresses else None
        else:
            energies, forces, virial, virials = self.evaluator.evaluate(
                atoms.positions, atoms.numbers, cell, atoms.pbc, with_virials=with_stresses
            )
        results = self._as_results(atoms, energies, forces, virial)
        if not np.isfinite(results["energy"]):
            raise InputError("the energy is not finite; do two atoms coincide?")
        if virials is not None and "stress" in results:
            results["stresses"] = full_3x3_to_voigt_6_stress(-virials / atoms.get_volume())
        return results

    def _as_results(
        self, atoms: Atoms, energies: NDArray, forces: NDArray, virial: NDArray
    ) -> dict[str, Any]:
        energy = float(energies.sum())
        results = {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
        # As in ASE's own calculators, the stress of a slab refers to the volume of its cell.
        if self.enable_stress and atoms.pbc.any() and atoms.cell.rank == 3:
            results["stress"] = full_3x3_to_voigt_6_stress(-virial / atoms.get_volume())
        return results

    def calculate_batch(self, structures: Iterable[Atoms]) -> list[dict[str, Any]]:
        """Evaluate many structures, of any sizes and periodicity, in batches.

        Structures are joined to graphs of at most `batch_memory_mb`; a larger structure is a batch
        of its own. Neither `results` nor the structures are changed.

        Parameters
        ----------
        structures : Iterable[Atoms]
            ASE structures.

        Returns
        -------
        list[dict[str, Any]]
            Results of each structure, in the same order: energy and free_energy in eV, energies
            (N,) in eV, forces (N, 3) in eV/angstrom and, if it is periodic, stress (6,) in
            eV/angstrom^3.

        Raises
        ------
        InputError
            A structure is unusable; the message contains its number.
        """
        structures = list(structures)
        elements = self.archive.metadata["elements"]
        allowed = {"charged": self._charged, "charge": self._charge}
        _check_batch(structures, elements, allowed)
        results: list[dict[str, Any]] = []
        for rows in self.batches(structures):
            batch = structures[rows]
            graph = join(batch, self.archive.metadata["cutoff"])
            if (bad := _suspect(graph)) is not None:
                _check_one(batch[bad], rows.start + bad, elements, allowed)
            energies, forces, gradient = evaluate_graph(self.evaluator, graph)
            virials = np.zeros((len(batch), 3, 3))
            if any(atoms.pbc.any() for atoms in batch):
                virials = structure_virials(graph, gradient)
            begin = 0
            for atoms, virial in zip(batch, virials, strict=True):
                own = slice(begin, begin := begin + len(atoms))
                results.append(self._as_results(atoms, energies[own], forces[own], virial))
        return results

    def batches(self, structures: Sequence[Atoms]) -> list[slice]:
        """Return the batches into which `calculate_batch` divides structures, by their memory."""
        memory_mb = self.batch_memory_mb
        if memory_mb is None and self.device.partition(":")[0] == "cuda":
            import torch

            memory_mb = GPU_BATCH_SHARE * 1e-6 * torch.cuda.mem_get_info(self.device)[0]
        budget_bytes = 1e6 * (CPU_BATCH_MB if memory_mb is None else memory_mb)
        by_edges = self.backend == "portable"
        return list(within_memory(structures, self.archive.metadata, budget_bytes, by_edges))

    def use_threads(self, threads: int) -> None:
        """Set the number of threads of the native kernels.

        Parameters
        ----------
        threads : int
            Number of threads; results do not depend on it.

        Raises
        ------
        InputError
            The number is not positive.
        """
        self.threads = threads
        self._start()

    def get_timing_stats(self) -> dict[str, float]:
        """Return the times of calculations of single structures since the last `reset_timing`.

        Returns
        -------
        dict[str, float]
            The keys are count, min_ms, mean_ms, median_ms, max_ms and last_ms. Without a
            calculation there is only count, which is 0.
        """
        times = 1e3 * np.array(self._seconds)
        if not len(times):
            return {"count": 0}
        figures = {"min": np.min, "mean": np.mean, "median": np.median, "max": np.max}
        stats = {f"{name}_ms": float(figure(times)) for name, figure in figures.items()}
        return {"count": len(times), **stats, "last_ms": float(times[-1])}

    def reset_timing(self) -> None:
        """Delete the times of earlier calculations. (`reset` deletes their results.)"""
        self._seconds = array("d")


def _state(atoms: Atoms) -> dict[str, NDArray]:
    """Return all that ASE's calculators compare."""
    return {
        "positions": atoms.positions,
        "numbers": atoms.numbers,
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
        "initial_charges": atoms.get_initial_charges(),
        "initial_magmoms": atoms.get_initial_magnetic_moments(),
    }


def _check_batch(structures: list[Atoms], elements: list[str], allowed: dict[str, Any]) -> None:
    """Check structures as `check_structure` does, except for distances in open structures."""
    known = np.zeros(len(covalent_radii), dtype=bool)
    known[[atomic_numbers[symbol] for symbol in elements]] = True
    for number, atoms in enumerate(structures):
        if not isinstance(atoms, Atoms):
            raise InputError(
                f"structure {number} is {type(atoms).__name__}, expected an ase.Atoms object"
            )
        placed = np.abs(atoms.positions).max(initial=0.0) < FARTHEST  # False for NaN
        placed &= np.isfinite(atoms.cell.array).all()
        if len(atoms) == 0 or not known[atoms.numbers].all() or not placed or atoms.pbc.any():
            _check_one(atoms, number, elements, allowed)
        else:
            _numbered(number, partial(check_electrons, **allowed), atoms)


def _check_one(atoms: Atoms, number: int, elements: list[str], allowed: dict[str, Any]) -> None:
    _numbered(number, partial(check_structure, elements=elements, **allowed), atoms)


def _numbered(number: int, check: Callable[[Atoms], None], atoms: Atoms) -> None:
    """Check a structure, with its number in the message of an error."""
    try:
        check(atoms)
    except InputError as error:
        raise InputError(f"structure {number}: {error}") from error


def _suspect(graph: Graph) -> int | None:
    """Return the first structure with atoms too close or hydrogens missing; None if there is none.

    These are the last two checks of `check_structure`, computed from the edges of the graph.
    """
    too_close = np.linalg.norm(graph.edge_vectors, axis=1) < SHORTEST_DISTANCE
    bare = bare_atoms(graph.numbers, graph.edge_index, graph.edge_vectors, graph.owner)
    suspects = graph.owner[np.concatenate([graph.edge_index[0][too_close], bare])]
    return int(suspects.min()) if len(suspects) else None
