"""Measure the density of a box at constant pressure, and the diffusion of its molecules."""

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

NUMBERS_KEPT = 6_000_000  # most coordinates of molecules in memory; they take 48 MB
# Times at which the mean square displacement is fitted, as shares of the run.
LAGS = np.linspace(0.05, 0.25, 20)
FEWEST_FRAMES = 50
YEH_HUMMER = 2.837297  # for a cubic box; Yeh and Hummer 2004, doi:10.1021/jp0477147, eq. 7
G_PER_CM3 = 1e24 / units.mol  # 1 amu/angstrom^3 in g/cm^3
CM2_PER_S = 1e-4  # 1 angstrom^2/ps in cm^2/s


@dataclass(frozen=True)
class Density(Measured):
    """Mean density of a run and its linear trend.

    Attributes
    ----------
    density_g_per_cm3, density_stderr_g_per_cm3 : float
        Mean density and its standard error from blocks, g/cm^3.
    density_drift_percent_per_ns, density_drift_stderr_percent_per_ns : float
        Slope of the density against time and its standard error (`slope_with_error`), in percent of
        the mean density per ns.
    """

    density_g_per_cm3: float
    density_stderr_g_per_cm3: float
    density_drift_percent_per_ns: float
    density_drift_stderr_percent_per_ns: float

    def figures(self) -> list[Figure]:
        """Return the mean and the trend."""
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
        Diffusion coefficient, cm^2/s: a sixth of the slope of the mean square displacement against
        time, between 1/20 and 1/4 of the run, with a standard error from the scatter over
        molecules. It is that of this box, and greater in a larger box (`infinite_box`).
    msd_exponent : float
        Slope of log(mean square displacement) against log(time) over the same times. It is 1 if
        molecules diffuse, 2 if they fly freely, and less than 1 if they are caged. If it is far
        from 1, the coefficient has no meaning.
    lag_ps : NDArray[np.float64]
        Times of the curve, (lags,), ps.
    msd_angstrom2 : NDArray[np.float64]
        Mean square displacement at these times, (lags,), angstrom^2.
    """

    diffusion_cm2_per_s: float
    diffusion_stderr_cm2_per_s: float
    msd_exponent: float
    lag_ps: NDArray[np.float64] = field(repr=False)
    msd_angstrom2: NDArray[np.float64] = field(repr=False)

    def figures(self) -> list[Figure]:
        """Return the coefficient and the exponent."""
        return [
            Figure(
                "diffusion", self.diffusion_cm2_per_s, "cm^2/s", self.diffusion_stderr_cm2_per_s
            ),
            Figure("msd_exponent", self.msd_exponent),
        ]


def measure_density(
    time_ps: NDArray[np.float64], volume_angstrom3: NDArray[np.float64], mass_amu: float
) -> Density:
    """Measure the density of a periodic box from its volumes.

    Parameters
    ----------
    time_ps : NDArray[np.float64]
        Times, (rows,), ps.
    volume_angstrom3 : NDArray[np.float64]
        Volumes, (rows,), angstrom^3.
    mass_amu : float
        Mass of all atoms, amu.

    Returns
    -------
    Density
        Mean density and its trend.

    Raises
    ------
    InputError
        If there are fewer than 8 rows.
    """
    density = mass_amu * G_PER_CM3 / volume_angstrom3
    mean = mean_of_blocks(density)
    slope, error = slope_with_error(time_ps, density)
    percent_per_ns = 100.0 * 1e3 / mean.value
    return Density(*mean, slope * percent_per_ns, error * percent_per_ns)


def measure_diffusion(
    frames: Iterable[Frames], structure: Structure, *, frame_ps: float
) -> Diffusion:
    """Measure the diffusion coefficient of the molecules.

    Displacements are relative to the centre of mass of all molecules. Atoms may be wrapped into the
    cell singly, by molecule, or not at all, if a molecule moves by less than half a cell from frame
    to frame.

    Parameters
    ----------
    frames : Iterable[Frames]
        Parts of a trajectory, as `stream_frames` yields them.
    structure : Structure
        Structure of the same atoms, with bonds and masses.
    frame_ps : float
        Time between frames, ps.

    Returns
    -------
    Diffusion
        Coefficient and the curve of the mean square displacement.

    Raises
    ------
    InputError
        If there are fewer than 50 frames, or a position is not finite.
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
            raise InputError("a position is NaN or infinite, so diffusion cannot be measured")
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
    slopes = (
        np.polyfit(lag_ps, msd, 1)[0] / 6.0
    )  # of each molecule; their mean is the slope of the mean
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
    """Correct the diffusion coefficient of a cubic periodic box to that of an infinite box.

    The periodic images slow the molecules down. The corrected coefficient is
    D + 2.837 kT / (6 pi eta L) (Yeh and Hummer 2004, doi:10.1021/jp0477147, equation 7), with the
    viscosity eta and the edge L of the box.

    Parameters
    ----------
    diffusion_cm2_per_s : float
        Diffusion coefficient D in the box, cm^2/s.
    temperature_K : float
        Temperature T, K.
    viscosity_mpa_s : float
        Shear viscosity eta of the same model, mPa s.
    edge : float
        Edge L of the box, angstrom.

    Returns
    -------
    float
        Diffusion coefficient in an infinite box, cm^2/s.
    """
    thermal = units._k * temperature_K  # J
    drag = 6.0 * np.pi * 1e-3 * viscosity_mpa_s * 1e-10 * edge  # kg/s
    return diffusion_cm2_per_s + 1e4 * YEH_HUMMER * thermal / drag
