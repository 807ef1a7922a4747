"""Density of a box under pressure, and how fast its molecules diffuse."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from ase import units
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mlff_student.analysis.blocks import mean_of_blocks, stderr_of
from mlff_student.analysis.bonds import bond_pairs
from mlff_student.analysis.drift import slope_with_error
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, Measured
from mlff_student.structures.checks import connected_fragments
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import Frames, make_whole

NUMBERS_KEPT = 6_000_000  # coordinates of molecules: 48 MB
LAGS = np.linspace(0.05, 0.25, 20)  # of the run: where the mean square displacement is fitted
FEWEST_FRAMES = 50
YEH_HUMMER = 2.837297  # of a cubic box; Yeh and Hummer 2004, doi:10.1021/jp0477147, eq. 7
G_PER_CM3 = 1e24 / units.mol  # of 1 amu/angstrom^3
CM2_PER_S = 1e-4  # of 1 angstrom^2/ps


@dataclass(frozen=True)
class Density(Measured):
    """Mean density and its linear trend, with standard errors (blocks; `slope_with_error`)."""

    density_g_per_cm3: float
    density_stderr_g_per_cm3: float
    density_drift_percent_per_ns: float
    density_drift_stderr_percent_per_ns: float

    def figures(self) -> list[Figure]:
        """Mean and trend."""
        return [
            Figure("density", self.density_g_per_cm3, "g/cm^3", self.density_stderr_g_per_cm3),
            Figure(
                "density_drift",
                self.density_drift_percent_per_ns,
                "%/ns",
                self.density_drift_stderr_percent_per_ns,
            ),
        ]


@dataclass(frozen=True)
class Diffusion(Measured):
    """Self-diffusion of the molecules' centres of mass.

    Attributes
    ----------
    diffusion_cm2_per_s, diffusion_stderr_cm2_per_s : float
        Slope of the mean square displacement / 6, between 1/20 and 1/4 of the run; standard error
        from the scatter over molecules. Of this box: in a larger one it is greater
        (`infinite_box`).
    msd_exponent : float
        Slope of log(displacement) against log(time) there: 1 where molecules diffuse, 2 where they
        fly, less than 1 where they are caged; far from 1 the coefficient means nothing.
    lag_ps, msd_angstrom2 : NDArray[np.float64]
        The curve.
    """

    diffusion_cm2_per_s: float
    diffusion_stderr_cm2_per_s: float
    msd_exponent: float
    lag_ps: NDArray[np.float64] = field(repr=False)
    msd_angstrom2: NDArray[np.float64] = field(repr=False)

    def figures(self) -> list[Figure]:
        """Coefficient and exponent."""
        return [
            Figure(
                "diffusion", self.diffusion_cm2_per_s, "cm^2/s", self.diffusion_stderr_cm2_per_s
            ),
            Figure("msd_exponent", self.msd_exponent),
        ]


def measure_density(
    time_ps: NDArray[np.float64], volume_angstrom3: NDArray[np.float64], mass_amu: float
) -> Density:
    """Density of a periodic box from its volumes (rows,)."""
    density = mass_amu * G_PER_CM3 / volume_angstrom3
    mean = mean_of_blocks(density)
    slope, error = slope_with_error(time_ps, density)
    percent_per_ns = 100.0 * 1e3 / mean.value
    return Density(*mean, slope * percent_per_ns, error * percent_per_ns)


def measure_diffusion(
    frames: Iterable[Frames], structure: Structure, *, frame_ps: float
) -> Diffusion:
    """Diffusion coefficient of all molecules, relative to the centre of mass of them all.

    Atoms may be wrapped into the cell one by one, or by molecule, or not at all, as long as a
    molecule goes less than half a cell from one frame to the next.

    Parameters
    ----------
    frame_ps : float
        Time between frames.

    Raises
    ------
    InputError
        Fewer than 50 frames, or positions that are not finite.
    """
    bonds = bond_pairs(structure.topology)
    masses = structure.atoms.get_masses()
    fragment = connected_fragments(len(masses), bonds.tolist())
    of_molecules = np.bincount(fragment, weights=masses)
    shares = csr_array((masses / of_molecules[fragment], (fragment, np.arange(len(masses)))))
    path: list[NDArray[np.float64]] = []  # unwrapped centres (M, 3), every `stride`-th frame
    stride, count = 1, 0
    wrapped = unwrapped = None
    for part in frames:
        if not np.isfinite(part.positions).all():
            raise InputError("positions that are not finite do not diffuse")
        for index, positions in enumerate(make_whole(part.positions, part.cells, bonds)):
            centres = shares @ positions
            step = 0.0 if wrapped is None else centres - wrapped
            if part.cells is not None:
                cell = part.cells[index]
                step = step - np.round(step @ np.linalg.inv(cell)) @ cell if count else 0.0
            unwrapped = centres if unwrapped is None else unwrapped + step
            wrapped = centres
            if count % stride == 0:
                path.append(unwrapped)
                if len(path) * centres.size > NUMBERS_KEPT:
                    path, stride = path[::2], 2 * stride
            count += 1
    if len(path) < FEWEST_FRAMES:
        raise InputError(f"{len(path)} frames; diffusion needs {FEWEST_FRAMES} or more")
    centres = np.array(path)  # (F, M, 3)
    if centres.shape[1] > 1:
        drift = np.tensordot(centres, of_molecules / of_molecules.sum(), (1, 0))
        centres = centres - drift[:, None]
    lags = np.unique((LAGS * len(centres)).astype(int))
    lag_ps = lags * stride * frame_ps
    msd = np.array([((centres[k:] - centres[:-k]) ** 2).sum(axis=2).mean(axis=0) for k in lags])
    slopes = np.polyfit(lag_ps, msd, 1)[0] / 6.0  # of each molecule; a fit is linear in its data
    mean = msd.mean(axis=1)
    return Diffusion(
        diffusion_cm2_per_s=float(slopes.mean() * CM2_PER_S),
        diffusion_stderr_cm2_per_s=float(stderr_of(slopes) * CM2_PER_S),
        msd_exponent=float(np.polyfit(np.log(lag_ps), np.log(mean), 1)[0]),
        lag_ps=lag_ps,
        msd_angstrom2=mean,
    )


def infinite_box(
    diffusion_cm2_per_s: float, *, temperature_K: float, viscosity_mpa_s: float, edge: float
) -> float:
    """Diffusion coefficient without the drag of a cubic box's images, cm^2/s: D + 2.837 kT / (6 pi
    eta L), Yeh and Hummer 2004, with the viscosity eta of the same model and the edge L, angstrom.
    """
    thermal = units._k * temperature_K  # J
    drag = 6.0 * np.pi * 1e-3 * viscosity_mpa_s * 1e-10 * edge  # kg/s
    return diffusion_cm2_per_s + 1e4 * YEH_HUMMER * thermal / drag
