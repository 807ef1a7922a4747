"""Memory that large systems and long trajectories take."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent


def test_memory_does_not_grow_with_the_trajectory(tmp_path: Path) -> None:
    """10 and 80 MB of 3,000 water molecules: a trajectory of any length takes the same memory, and
    less than a gigabyte.
    """
    script = dedent(
        """
        import sys
        import numpy as np, mdtraj
        from ase.build import molecule
        from ase import Atoms
        from pathlib import Path
        from mlff_student.structures.trajectories import stream_frames
        from mlff_student.analysis.stability import measure_stability
        from mlff_student.analysis.transport import measure_diffusion
        from mlff_student.structures.reading import Structure, make_topology

        rng = np.random.default_rng(1)
        cell = np.eye(3) * 45.0
        grid = np.stack(np.meshgrid(*[np.arange(15)] * 3), -1).reshape(-1, 3)[:3000] * 3.0
        water = molecule("H2O").positions
        positions = (grid[:, None] + water).reshape(-1, 3)
        atoms = Atoms("OHH" * 3000, positions=positions, cell=cell, pbc=True)
        bonds = [(3 * m, 3 * m + k) for m in range(3000) for k in (1, 2)]
        structure = Structure(atoms, make_topology(atoms, bonds))
        path = Path(sys.argv[1])
        for frames in (93, 740):
            with mdtraj.formats.DCDTrajectoryFile(str(path), "w") as file:
                for _ in range(frames):
                    noisy = positions + 0.03 * rng.standard_normal(positions.shape)
                    file.write(noisy[None].astype("f4"), cell_lengths=np.full((1, 3), 45.0),
                               cell_angles=np.full((1, 3), 90.0))
            kept = measure_stability(stream_frames(path, structure), structure, path)
            measure_diffusion(stream_frames(path, structure), structure, frame_ps=0.1)
            # Of this program alone; ru_maxrss would begin with its parent's.
            status = Path("/proc/self/status").read_text()
            peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
            print(frames, path.stat().st_size / 2**20, peak, kept.frames)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run.dcd")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (_, small_mb, first, _), (frames, large_mb, second, read_frames) = (
        map(float, line.split()) for line in done.stdout.splitlines()
    )
    assert frames == read_frames and large_mb > 7.9 * small_mb > 75
    assert second < 1024
    # Centres of mass of 3,000 molecules, as doubles, twice: 140 KB a frame, up to a limit.
    assert second - first < 200


MEMORY = """
import torch
from pathlib import Path
from mlff_student.model.neighbours import neighbour_edges

def peak_mb(atoms):
    edge = (atoms / 0.02) ** (1 / 3)  # 10 neighbours an atom
    torch.manual_seed(0)
    neighbour_edges(
        torch.rand(atoms, 3, dtype=torch.float64) * edge,
        torch.eye(3, dtype=torch.float64) * edge,
        torch.ones(3, dtype=torch.bool),
        5.0,
        candidates_at_once=200_000,
    )
    # The peak of this program alone; ru_maxrss would include its parent's.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

print(peak_mb(100), peak_mb(30_000), peak_mb(60_000))
"""


def test_memory_grows_as_the_number_of_atoms():
    """A table of all pairs, one byte each, would add 860 MB and then 2600 MB more."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    start, middle, end = map(float, run.stdout.split())
    assert middle - start < 300.0
    assert end - middle < 300.0
