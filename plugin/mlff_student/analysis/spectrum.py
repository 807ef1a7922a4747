"""Vibrational spectrum: the power of the atoms' velocities by frequency."""

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

PER_CM = 1e10 / units._c  # ps: a period of 1/cm
HIGHEST = 4000.0  # 1/cm, above the O-H stretch: what the frames must resolve
NEAREST_PEAK = 100.0  # 1/cm
PROMINENCE = 0.05  # of a peak, in the highest
NUMBERS_AT_ONCE = 12_000_000  # velocities in a window: 96 MB


@dataclass(frozen=True)
class Spectrum:
    """Mass-weighted power of velocities, of integral one: the density of vibrational states."""

    frequency_per_cm: NDArray[np.float64]  # (W,)
    blocks: NDArray[np.float64]  # (blocks, W), of consecutive stretches of the run
    weights: NDArray[np.float64]  # (blocks,), share of each stretch; sum 1

    @property
    def power(self) -> NDArray[np.float64]:
        """Of the whole run, (W,), integral over 1/cm is one."""
        return _normalised(self.weights @ self.blocks, self.frequency_per_cm)


@dataclass(frozen=True)
class SpectrumError(Measured):
    """How far a run's spectrum is from the teacher's.

    Attributes
    ----------
    spectrum_overlap_percent : float
        100 int min(s, t) of the two, each of integral one.
    spectrum_overlap_noise_percent : float
        The same between the halves of the teacher's own run: what sampling alone leaves.
    spectrum_shift_per_cm, spectrum_shift_noise_per_cm : float
        How far intensity must be moved on average to turn one into the other (first Wasserstein
        distance), and the same between the halves.
    spectrum_peak_shift_per_cm : float
        Mean distance of the teacher's peaks to the run's nearest, which intensities do not move:
        those of a few modes take long to even out. NaN without a match.
    spectrum_peaks, spectrum_peaks_missing : int
        Of the teacher, and those of them with none of the run's within 100 1/cm.
    """

    spectrum_overlap_percent: float
    spectrum_overlap_noise_percent: float
    spectrum_shift_per_cm: float
    spectrum_shift_noise_per_cm: float
    spectrum_peak_shift_per_cm: float
    spectrum_peaks: int
    spectrum_peaks_missing: int

    def figures(self) -> list[Figure]:
        """All figures."""
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
    """Spectrum by Welch's method: windows (Hann) of as many frames as the resolution needs, half
    overlapping. By the Wiener-Khinchin theorem it is the Fourier transform of the velocities'
    autocorrelation.

    Without velocities in the file, they are differences of positions (to the nearest image), whose
    known damping (sin(x) / x)^2, x = pi nu dt, is taken out. Of more atoms than 12 million numbers
    in a window hold, every k-th of each element is taken.

    Parameters
    ----------
    frame_ps : float
        Time between frames.

    Raises
    ------
    InputError
        Frames too far apart to resolve 4000 1/cm (a faster vibration would appear as a slower one),
        a run of less than a window, or positions that are not finite.
    """
    if 0.5 * PER_CM / frame_ps < HIGHEST:
        raise InputError(
            f"frames every {1e3 * frame_ps:.3g} fs resolve {0.5 * PER_CM / frame_ps:.0f} 1/cm; a "
            f"spectrum needs {HIGHEST:.0f}: write one every {500 * PER_CM / HIGHEST:.0f} fs or less"
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
            f"the run is shorter than the {window} frames that {resolution_per_cm:g} 1/cm need"
        )
    return Spectrum(frequency, blocks, weights)


def compare_spectra(student: Spectrum, teacher: Spectrum) -> SpectrumError:
    """Overlap of two spectra, and the distance between them.

    Raises
    ------
    InputError
        A teacher's run of one window, which tells no noise.
    """
    if len(teacher.blocks) < 2:
        raise InputError("the teacher's run is too short for a spectrum with its noise")
    nu = teacher.frequency_per_cm
    powers = [np.interp(nu, one.frequency_per_cm, one.power) for one in (student, teacher)]
    half = len(teacher.blocks) // 2
    halves = [teacher.blocks[:half].mean(axis=0), teacher.blocks[half:].mean(axis=0)]
    found, expected = (_peaks(nu, power) for power in powers)
    distances = np.abs(expected[:, None] - found).min(axis=1, initial=np.inf)
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
    """Velocities (F, A, 3) of the chosen atoms, and whether they are differences of positions."""
    last = None
    for part in frames:
        if not np.isfinite(part.positions).all():
            raise InputError("positions that are not finite have no spectrum")
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
    """Places of peaks, between bins by the parabola through the logarithms of three."""
    at, _ = find_peaks(power, prominence=PROMINENCE * power.max())
    left, middle, right = (np.log(power[at + k]) for k in (-1, 0, 1))
    return nu[at] + 0.5 * (left - right) / (left - 2.0 * middle + right) * (nu[1] - nu[0])


def _normalised(power: NDArray[np.float64], nu: NDArray[np.float64]) -> NDArray[np.float64]:
    return power / (power.sum() * (nu[1] - nu[0]))


def _overlap(s: NDArray[np.float64], t: NDArray[np.float64], nu: NDArray[np.float64]) -> float:
    both = np.minimum(_normalised(s, nu), _normalised(t, nu))
    return float(100.0 * both.sum() * (nu[1] - nu[0]))
