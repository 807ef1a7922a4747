"""Measure the vibrational spectrum, which is the power of the atoms' velocities by frequency."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from ase import units
from numpy.typing import NDArray
from scipy.signal import find_peaks, get_window
from scipy.stats import wasserstein_distance

from mlff_student.analysis.blocks import Stretches
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, Measured
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import Frames

PER_CM = 1e10 / units._c  # period of a vibration of 1/cm, ps
HIGHEST = 4000.0  # 1/cm, above the O-H stretch; the frames must resolve it
NEAREST_PEAK = 100.0  # 1/cm; a peak farther away is not the same peak
PROMINENCE = 0.05  # of a peak, as a share of the highest power
NUMBERS_AT_ONCE = 12_000_000  # most velocity components in a window; they take 96 MB


@dataclass(frozen=True)
class Spectrum:
    """Density of vibrational states: the mass-weighted power of the velocities.

    Attributes
    ----------
    frequency_per_cm : NDArray[np.float64]
        Wavenumbers, (W,), 1/cm.
    blocks : NDArray[np.float64]
        Power of consecutive stretches of the run, (blocks, W), not normalised.
    weights : NDArray[np.float64]
        Share of each stretch in the run, (blocks,). The sum is 1.
    """

    frequency_per_cm: NDArray[np.float64]
    blocks: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def power(self) -> NDArray[np.float64]:
        """The power of the whole run, (W,), cm. Its integral over the wavenumber is 1."""
        return _normalised(self.weights @ self.blocks, self.frequency_per_cm)


@dataclass(frozen=True)
class SpectrumError(Measured):
    """How far the spectrum of a run differs from that of the teacher's run.

    Attributes
    ----------
    spectrum_overlap_percent : float
        Overlap of the two spectra, 100 int min(s, t), percent, where both have the integral 1.
    spectrum_overlap_noise_percent : float
        Overlap of the two halves of the teacher's run, percent. Sampling alone gives this overlap.
    spectrum_shift_per_cm : float
        Mean distance by which intensity must be moved to turn the run's spectrum into the teacher's
        (first Wasserstein distance), 1/cm.
    spectrum_shift_noise_per_cm : float
        The same distance between the two halves of the teacher's run, 1/cm.
    spectrum_peak_shift_per_cm : float
        Mean distance of the teacher's peaks from the nearest peaks of the run, 1/cm. It does not
        depend on intensities, which converge slowly. NaN if no peak has a match.
    spectrum_peaks : int
        Number of peaks in the teacher's spectrum.
    spectrum_peaks_missing : int
        Number of the teacher's peaks without a peak of the run within 100 1/cm.
    """

    spectrum_overlap_percent: float
    spectrum_overlap_noise_percent: float
    spectrum_shift_per_cm: float
    spectrum_shift_noise_per_cm: float
    spectrum_peak_shift_per_cm: float
    spectrum_peaks: int
    spectrum_peaks_missing: int

    def figures(self) -> list[Figure]:
        """Return all figures."""
        return [
            Figure(
                "spectrum_overlap",
                self.spectrum_overlap_percent,
                "%",
                noise=self.spectrum_overlap_noise_percent,
            ),
            Figure(
                "spectrum_shift",
                self.spectrum_shift_per_cm,
                "1/cm",
                noise=self.spectrum_shift_noise_per_cm,
            ),
            Figure("spectrum_peak_shift", self.spectrum_peak_shift_per_cm, "1/cm"),
            Figure("spectrum_peaks", self.spectrum_peaks),
            Figure("spectrum_peaks_missing", self.spectrum_peaks_missing),
        ]


def measure_spectrum(
    frames: Iterable[Frames],
    structure: Structure,
    *,
    frame_ps: float,
    resolution_per_cm: float = 10.0,
) -> Spectrum:
    """Measure the vibrational spectrum of a trajectory by Welch's method.

    The run is divided into Hann windows of as many frames as the resolution needs, which overlap by
    half. By the Wiener-Khinchin theorem, the spectrum is the Fourier transform of the
    autocorrelation of the velocities.

    If the file has no velocities, they are computed as differences of positions to the nearest
    image. These damp the power by (sin(x) / x)^2 with x = pi nu dt, which is corrected. If a
    window would hold more than 12 million numbers, only every k-th atom of each element is used.

    Parameters
    ----------
    frames : Iterable[Frames]
        Parts of a trajectory, as `stream_frames` yields them.
    structure : Structure
        Structure of the same atoms.
    frame_ps : float
        Time between frames, ps.
    resolution_per_cm : float
        Distance of neighbouring wavenumbers in the spectrum, 1/cm.

    Returns
    -------
    Spectrum
        Spectrum of the run and of its stretches.

    Raises
    ------
    InputError
        If the frames are too far apart to resolve 4000 1/cm (a faster vibration would appear as a
        slower one), the run is shorter than a window, or a position is not finite.
    """
    if 0.5 * PER_CM / frame_ps < HIGHEST:
        raise InputError(
            f"frames every {1e3 * frame_ps:.3g} fs resolve {0.5 * PER_CM / frame_ps:.0f} 1/cm, but "
            f"a spectrum needs {HIGHEST:.0f} 1/cm: write a frame every "
            f"{500 * PER_CM / HIGHEST:.0f} fs or more often"
        )
    window = max(8, round(PER_CM / resolution_per_cm / frame_ps))
    numbers, masses = structure.atoms.numbers, structure.atoms.get_masses()
    skip = max(1, int(np.ceil(3 * window * len(numbers) / NUMBERS_AT_ONCE)))
    chosen = np.argsort(numbers, kind="stable")[::skip]
    hann = get_window("hann", window)[:, None, None]
    frequency = np.asarray(np.fft.rfftfreq(window, frame_ps), dtype=np.float64) * PER_CM
    damping = np.sinc(frequency / PER_CM * frame_ps) ** 2
    stretches = Stretches(4)
    waiting = np.empty((0, len(chosen), 3))
    for velocities, differences in _velocities(frames, chosen, frame_ps):
        waiting = np.concatenate([waiting, velocities])
        while len(waiting) >= window:
            power = np.zeros(len(frequency))
            for atom, mass in enumerate(masses[chosen]):
                spectrum = np.fft.rfft(hann[:, 0] * waiting[:window, atom], axis=0)
                power += mass * (np.abs(spectrum) ** 2).sum(axis=1)
            stretches.add(power / damping if differences else power)
            waiting = waiting[window // 2 :]
    blocks, weights = stretches.means()
    if len(blocks) == 0:
        raise InputError(
            f"the run is shorter than the {window} frames that a resolution of "
            f"{resolution_per_cm:g} 1/cm needs"
        )
    return Spectrum(frequency, blocks, weights)


def compare_spectra(student: Spectrum, teacher: Spectrum) -> SpectrumError:
    """Compare the spectrum of a run with that of the teacher's run.

    Parameters
    ----------
    student, teacher : Spectrum
        Spectra of the two runs.

    Returns
    -------
    SpectrumError
        Overlap, shift and peaks, with the noise of the teacher's run.

    Raises
    ------
    InputError
        If the teacher's run has a single window, from which no noise can be computed.
    """
    if len(teacher.blocks) < 2:
        raise InputError("the teacher's run is too short for a spectrum with its noise")
    nu = teacher.frequency_per_cm
    powers = [np.interp(nu, run.frequency_per_cm, run.power) for run in (student, teacher)]
    half = len(teacher.blocks) // 2
    halves = [teacher.blocks[:half].mean(axis=0), teacher.blocks[half:].mean(axis=0)]
    peaks, expected = (_peaks(nu, power) for power in powers)
    distances = np.abs(expected[:, None] - peaks).min(axis=1, initial=np.inf)
    matched = distances < NEAREST_PEAK
    return SpectrumError(
        spectrum_overlap_percent=_overlap(*powers, nu),
        spectrum_overlap_noise_percent=_overlap(*halves, nu),
        spectrum_shift_per_cm=float(wasserstein_distance(nu, nu, *powers)),
        spectrum_shift_noise_per_cm=float(wasserstein_distance(nu, nu, *halves)),
        spectrum_peak_shift_per_cm=float(distances[matched].mean()) if matched.any() else np.nan,
        spectrum_peaks=len(expected),
        spectrum_peaks_missing=int((~matched).sum()),
    )


def _velocities(
    frames: Iterable[Frames], chosen: NDArray[np.int_], frame_ps: float
) -> Iterator[tuple[NDArray[np.float64], bool]]:
    """Yield velocities (F, A, 3) of the chosen atoms, and whether they are position differences."""
    last = None
    for part in frames:
        if not np.isfinite(part.positions).all():
            raise InputError("a position is NaN or infinite, so there is no spectrum")
        if part.velocities is not None:
            yield part.velocities[:, chosen], False
            continue
        positions = part.positions[:, chosen]
        steps = np.diff(positions, axis=0, prepend=positions[:1] if last is None else last)
        if part.cells is not None:
            steps -= np.round(steps @ np.linalg.inv(part.cells)) @ part.cells
        yield (steps[1:] if last is None else steps) / frame_ps, True
        last = positions[-1:]


def _peaks(nu: NDArray[np.float64], power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the wavenumbers of peaks, by a parabola through the logarithms of three bins."""
    bins, _ = find_peaks(power, prominence=PROMINENCE * power.max())
    left, middle, right = (np.log(power[bins + k]) for k in (-1, 0, 1))
    return nu[bins] + 0.5 * (left - right) / (left - 2.0 * middle + right) * (nu[1] - nu[0])


def _normalised(power: NDArray[np.float64], nu: NDArray[np.float64]) -> NDArray[np.float64]:
    return power / (power.sum() * (nu[1] - nu[0]))


def _overlap(s: NDArray[np.float64], t: NDArray[np.float64], nu: NDArray[np.float64]) -> float:
    both = np.minimum(_normalised(s, nu), _normalised(t, nu))
    return float(100.0 * both.sum() * (nu[1] - nu[0]))
