"""ASE calculator over an archive."""

import io
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from inspect import signature
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar
from weakref import ref

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import atomic_numbers, covalent_radii
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from torch import Tensor
from vesin import NeighborList

from mlff_student.archive.archive import Archive
from mlff_student.archive.graph import (
    Graph,
    atom_virials,
    edges_of,
    evaluate_graph,
    join,
    structure_virials,
    within_memory,
)
from mlff_student.archive.native import with_backend
from mlff_student.archive.registry import archive_of
from mlff_student.core.errors import InputError, check_key
from mlff_student.structures.checks import (
    FARTHEST,
    SHORTEST_DISTANCE,
    bare_atoms,
    check_cell,
    check_distances,
    check_structure,
)

SKIN = 1.0  # angstrom; as that of the native kernels
# Of a batch on the CPU: the fastest measured, of 2 to 128 MB, or near to it on both backends.
CPU_BATCH_MB = 32.0
GPU_BATCH_SHARE = 0.25  # of the free memory


def evaluate(archive: Archive, atoms: Atoms, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Energy of each atom (N,), forces (N, 3) and virial (3, 3); see `ArchiveModule.evaluate`."""
    return archive.module.evaluate(
        torch.tensor(atoms.positions, dtype=torch.float64, device=device),
        torch.tensor(atoms.numbers, dtype=torch.int64, device=device),
        torch.tensor(atoms.cell.array, dtype=torch.float64, device=device),
        torch.tensor(atoms.pbc, device=device),
    )


class StudentForceFieldCalculator(Calculator):
    """Energy, forces, stress, and the share of each atom in energy and stress, of a student.

    Native kernels search neighbours themselves, and so does the archive on a GPU; for the portable
    backend on the CPU vesin does, which is 1.1 to 1.7 times as fast. All but the GPU's keep a list
    with a skin, so that few steps of MD search at all.

    A calculator can be pickled and sent to other processes: its weights go along.

    A structure is checked when it is first seen (`mlff_student.structures.checks.check_structure`). On the
    way of a run only what cannot be evaluated is refused: an Atoms object that was evaluated last
    may bring its atoms closer than 0.3 angstrom, and one of the same elements may have its bonds
    stretched, because minimisers try such steps.

    Parameters
    ----------
    model : name of a shipped model, or path of a checkpoint or archive; "original" if neither this
        nor `checkpoint_path` is given.
    device : torch device.
    dtype : torch.float32 or torch.float64 (or their names), that a checkpoint is compiled in;
        float32 if not given. An exported archive has its own, and another one is refused.
    backend : kernels, "native", "portable" or "auto"; see `mlff_student.archive.native.with_backend`.
    checkpoint_path : the same as `model`.
    enable_stress : whether to give stress and stresses.
    enable_timing : whether to keep the time of every calculation; see `get_timing_stats`.
    batch_memory_mb : memory of `calculate_batch`; 32 on the CPU and a quarter of a GPU's free
        memory where not given.
    kwargs : of ase.calculators.calculator.Calculator; any other name is refused.

    Raises
    ------
    ArchiveError : the model cannot be found or read.
    MissingDependencyError : the native kernels cannot be used, and "native" was asked for.
    InputError : an option that makes no sense, and, on calculation, a structure the student must
        not be given.
    """

    name = "mlff_student"
    implemented_properties: ClassVar[list[str]] = [
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
        dtype: torch.dtype | str | None = None,
        backend: str = "auto",
        *,
        checkpoint_path: str | Path | None = None,
        enable_stress: bool = True,
        enable_timing: bool = False,
        batch_memory_mb: float | None = None,
        **kwargs: Any,
    ) -> None:
        options = [*signature(StudentForceFieldCalculator).parameters]
        options += signature(Calculator).parameters
        check_key(kwargs, [name for name in options if name != "kwargs"], type(self).__name__)
        super().__init__(**kwargs)
        if model is not None and checkpoint_path is not None:
            raise InputError(f"give model={model!r} or checkpoint_path={checkpoint_path!r}")
        if batch_memory_mb is not None and not 0.0 < batch_memory_mb < float("inf"):
            raise InputError(f"batch_memory_mb must be positive, got {batch_memory_mb}")
        chosen = model if model is not None else checkpoint_path
        chosen = "original" if chosen is None else chosen
        self.device = str(device)
        self.enable_stress = enable_stress
        self.enable_timing = enable_timing
        self.batch_memory_mb = batch_memory_mb
        precision = None if dtype is None else getattr(torch, _precision(dtype))
        self._portable = archive_of(chosen, precision, self.device)
        own = self._portable.metadata["dtype"]
        self.parameters.update(model=str(chosen), device=self.device, dtype=own, backend=backend)
        self._seconds = array("d")
        self._start()
        if not enable_stress:
            without = {"stress", "stresses"}
            self.implemented_properties = [
                one for one in type(self).implemented_properties if one not in without
            ]

    def _start(self) -> None:
        """What is made anew in another process."""
        self.archive = with_backend(self._portable, self.parameters["backend"], self.device)
        self._seen: ref[Atoms] | None = None  # what was evaluated last
        self.backend = "portable" if self.archive is self._portable else "native"
        self._search = NeighborList(
            cutoff=self.archive.metadata["cutoff"], full_list=True, skin=SKIN, n_threads=1
        )

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("archive", "_search", "_seen"):
            del state[name]
        content = io.BytesIO()
        torch.jit.save(self._portable.module, content)
        return state | {"_portable": (content.getvalue(), self._portable.metadata)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        content, metadata = state["_portable"]
        module = _module_of(content, state["device"])
        self.__dict__.update(state, _portable=Archive(module, metadata))
        self._start()

    def __repr__(self) -> str:
        facts = self.archive.metadata
        return (
            f"{type(self).__name__}({facts['name']!r}, {facts['parameters']:,} parameters, "
            f"teacher {facts['teacher']}, elements {' '.join(facts['elements'])}, "
            f"backend={self.backend!r}, device={self.device!r}, dtype={facts['dtype']!r})"
        )

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Called by ASE. Parameters are those of the network that was loaded, and stay.

        Raises
        ------
        InputError : one that would change.
        """
        known = self.parameters
        if changed := [k for k, v in kwargs.items() if k not in known or known[k] != v]:
            raise InputError(
                f"{', '.join(changed)} cannot be set afterwards; make another {type(self).__name__}"
            )
        return {}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results`; called by ASE."""
        start = perf_counter()
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        try:
            self._check(atoms, system_changes)
            self.results = self._results(self.atoms, "stresses" in (properties or ()))
        except Exception:
            self.atoms = self._seen = None  # else, asked again, it would pass for checked
            self.reset()
            raise
        if self.enable_timing:
            self._seconds.append(perf_counter() - start)

    def _check(self, given: Atoms | None, system_changes: list[str]) -> None:
        """All of a structure that is new; of one known, only what cannot be evaluated.

        In the course of a run atoms may come closer, and bonds stretch more, than in any structure
        that one starts with: a minimiser tries such steps, and the repulsion sends it back.
        """
        assert self.atoms is not None
        known = self._seen is not None and given is self._seen()
        self._seen = None if given is None else ref(given)
        changed = set(system_changes)
        sound = np.abs(self.atoms.positions).max(initial=0.0) < FARTHEST  # NaN is not
        if not sound or changed & {"numbers", "pbc"} or ("cell" in changed and not known):
            check_structure(self.atoms, self.archive.metadata["elements"])
        elif "cell" in changed:
            check_cell(self.atoms)
        elif not known:
            check_distances(self.atoms)

    def _results(self, atoms: Atoms, with_stresses: bool) -> dict[str, Any]:
        """ASE's results for one structure."""
        stresses = None
        on_gpu = torch.device(self.device).type != "cpu"
        if with_stresses or (self.backend == "portable" and not on_gpu):
            index, vectors = edges_of(atoms, self._search.cutoff, self._search)
            owner = np.zeros(len(atoms), dtype=np.int64)
            graph = Graph(vectors, index, atoms.numbers, owner, 1)
            found = evaluate_graph(self.archive, graph, self.device)
            energies, forces = found.energies, found.forces
            virial = structure_virials(graph, found.gradient)[0]
            if with_stresses:
                stresses = atom_virials(graph, found.gradient).cpu().numpy()
        else:
            try:
                energies, forces, virial = evaluate(self.archive, atoms, self.device)
            except (RuntimeError, ValueError) as error:
                _, refused, reason = str(error).rpartition("mlff_student: ")
                if not refused:
                    raise
                raise InputError(reason.strip()) from error
        results = self._as_results(
            atoms, energies.cpu().numpy(), forces.cpu().numpy(), virial.cpu().numpy()
        )
        if not np.isfinite(results["energy"]):
            raise InputError("the energy is not finite; do two atoms coincide?")
        if stresses is not None and "stress" in results:
            results["stresses"] = full_3x3_to_voigt_6_stress(-stresses / atoms.get_volume())
        return results

    def _as_results(
        self, atoms: Atoms, energies: NDArray, forces: NDArray, virial: NDArray
    ) -> dict[str, Any]:
        energy = float(energies.sum())
        results = {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
        # As in ASE's own calculators: a slab's stress is over the volume of the cell it is given.
        if self.enable_stress and atoms.pbc.any() and atoms.cell.rank == 3:
            results["stress"] = full_3x3_to_voigt_6_stress(-virial / atoms.get_volume())
        return results

    def calculate_batch(self, structures: Iterable[Atoms]) -> list[dict[str, Any]]:
        """Results of many structures, of any sizes and periodicity, evaluated together.

        Structures are joined to graphs of `batch_memory_mb`; one that is larger goes alone. Neither
        `results` nor the structures are touched.

        Parameters
        ----------
        structures : of ASE.

        Returns
        -------
        For each structure, in their order: energy, free_energy, energies, forces, and stress where
        it is periodic.

        Raises
        ------
        InputError : a structure that the student must not be given, with its number.
        """
        structures = list(structures)
        elements = self.archive.metadata["elements"]
        _check_batch(structures, elements)
        results: list[dict[str, Any]] = []
        for chosen in self.batches(structures):
            some = structures[chosen]
            graph = join(some, self.archive.metadata["cutoff"])
            if (bad := _suspect(graph)) is not None:
                _check_one(some[bad], chosen.start + bad, elements)
            found = evaluate_graph(self.archive, graph, self.device)
            energies, forces = found.energies.cpu().numpy(), found.forces.cpu().numpy()
            virials = np.zeros((len(some), 3, 3))
            if any(atoms.pbc.any() for atoms in some):
                virials = structure_virials(graph, found.gradient).cpu().numpy()
            begin = 0
            for atoms, virial in zip(some, virials, strict=True):
                rows = slice(begin, begin := begin + len(atoms))
                results.append(self._as_results(atoms, energies[rows], forces[rows], virial))
        return results

    def batches(self, structures: Sequence[Atoms]) -> list[slice]:
        """How `calculate_batch` divides structures by the memory they take."""
        memory_mb = self.batch_memory_mb
        if memory_mb is None and torch.device(self.device).type == "cuda":
            memory_mb = GPU_BATCH_SHARE * 1e-6 * torch.cuda.mem_get_info(self.device)[0]
        budget_bytes = 1e6 * (CPU_BATCH_MB if memory_mb is None else memory_mb)
        by_edges = self.backend == "portable"
        return list(within_memory(structures, self.archive.metadata, budget_bytes, by_edges))

    def get_timing_stats(self) -> dict[str, float]:
        """Time of the calculations of single structures since the last `reset_timing`.

        Returns
        -------
        count, min_ms, mean_ms, median_ms, max_ms, last_ms; only count, of 0, where there are none.
        """
        times = 1e3 * np.array(self._seconds)
        if not len(times):
            return {"count": 0}
        figures = {"min": np.min, "mean": np.mean, "median": np.median, "max": np.max}
        stats = {f"{name}_ms": float(figure(times)) for name, figure in figures.items()}
        return {"count": len(times), **stats, "last_ms": float(times[-1])}

    def reset_timing(self) -> None:
        """Forget the times of earlier calculations. (`reset` forgets their results.)"""
        self._seconds = array("d")


def _precision(dtype: torch.dtype | str) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "float64"):
        raise InputError(f"dtype must be float32 or float64, got {dtype!r}")
    return name


@lru_cache(maxsize=4)  # a pool of processes gets the same calculator with every task
def _module_of(content: bytes, device: str) -> torch.jit.ScriptModule:
    return torch.jit.load(io.BytesIO(content), map_location=device)


def _check_batch(structures: list[Atoms], elements: list[str]) -> None:
    """All that `check_structure` finds, but for distances in open structures."""
    known = np.zeros(len(covalent_radii), dtype=bool)
    known[[atomic_numbers[symbol] for symbol in elements]] = True
    for number, atoms in enumerate(structures):
        if not isinstance(atoms, Atoms):
            raise InputError(
                f"structure {number} is {type(atoms).__name__}, expected an ase.Atoms object"
            )
        placed = np.abs(atoms.positions).max(initial=0.0) < FARTHEST  # NaN is not
        placed &= np.isfinite(atoms.cell.array).all()
        if len(atoms) == 0 or not known[atoms.numbers].all() or not placed or atoms.pbc.any():
            _check_one(atoms, number, elements)


def _check_one(atoms: Atoms, number: int, elements: list[str]) -> None:
    try:
        check_structure(atoms, elements)
    except InputError as error:
        raise InputError(f"structure {number}: {error}") from error


def _suspect(graph: Graph) -> int | None:
    """First structure with atoms too close or hydrogens missing, or None: `check_structure`'s last
    two findings, from edges that are there already.
    """
    too_close = np.linalg.norm(graph.edge_vectors, axis=1) < SHORTEST_DISTANCE
    bare = bare_atoms(graph.numbers, graph.edge_index, graph.edge_vectors, graph.owner)
    found = graph.owner[np.concatenate([graph.edge_index[0][too_close], bare])]
    return int(found.min()) if len(found) else None
