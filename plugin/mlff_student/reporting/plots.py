"""Figures on paper: what a run did with its energy, how a training went, how fast it goes."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from mlff_student.core.figures import Figure
from mlff_student.core.files import atomic_write

# Okabe and Ito's palette, which colour-blind readers can distinguish (jfly.uni-koeln.de/color).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FONT_SIZE = 10
LONG_LABEL = 15  # letters: four such do not fit above a figure
LEGEND_LONGEST = 12  # entries, of figures in a page


@contextmanager
def single_figure(path: Path, x: str, y: str, *, yscale: str = "linear") -> Iterator[Axes]:
    """Axes of a figure of one message, labelled; written as PNG when the block ends.

    Raises
    ------
    InputError
        `path` cannot be written.
    """
    figure = Canvas(figsize=(6.0, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLOURS)
    axes.set_yscale(yscale)  # which removes ticks that are there
    yield axes
    axes.set_xlabel(x, fontsize=FONT_SIZE)
    axes.set_ylabel(y, fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    if labels := axes.get_legend_handles_labels()[1]:
        ncols = 4 if max(map(len, labels)) < LONG_LABEL else 3
        figure.legend(fontsize=FONT_SIZE, loc="outside upper left", ncols=ncols, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


class EnergyCourse(NamedTuple):
    """What a run did with its energy, for `plot_drift`."""

    time_ps: NDArray[np.float64]  # (rows,)
    energy_mev_per_atom: NDArray[np.float64]  # (rows,), total
    temperature_k: NDArray[np.float64]  # (rows,)
    drift: Figure  # meV/atom/ps
    temperature: Figure  # mean, K
    temperature_std: Figure  # K


def plot_drift(runs: Mapping[str, EnergyCourse], path: Path) -> None:
    """PNG of total energy with its fitted drift, above temperature, for runs by label.

    Raises
    ------
    InputError
        If `path` cannot be written.
    """
    figure = Canvas(figsize=(7.0, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for index, (label, run) in enumerate(runs.items()):
        colour = COLOURS[index % len(COLOURS)]
        time, energy = run.time_ps, run.energy_mev_per_atom
        finite = np.isfinite(energy)
        start = energy[finite][0] if finite.any() else 0.0
        noisy = {"color": colour, "linewidth": 0.6, "alpha": 0.4}
        above.plot(time, energy - start, **noisy)
        above.plot(
            time,
            energy.mean() - start + run.drift.value * (time - time.mean()),
            color=colour,
            linewidth=2.0,
            label=f"{label}: {run.drift} {run.drift.unit}, "
            f"{run.temperature.value:.0f} ± {run.temperature_std.value:.0f} K",
        )
        below.plot(time, run.temperature_k, **noisy)
        below.axhline(run.temperature.value, color=colour, linewidth=2.0)
    above.set_ylabel("total energy - start (meV/atom)", fontsize=FONT_SIZE)
    below.set_ylabel("temperature (K)", fontsize=FONT_SIZE)
    below.set_xlabel("time (ps)", fontsize=FONT_SIZE)
    for axes in (above, below):
        axes.tick_params(labelsize=FONT_SIZE)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
    # Above the axes, where it hides nothing.
    figure.legend(
        title="drift ± standard error, temperature ± fluctuation",
        title_fontsize=FONT_SIZE,
        fontsize=FONT_SIZE,
        loc="outside upper left",
        alignment="left",
        frameon=False,
    )
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def plot_force_errors(
    rmse_of_frames: NDArray[np.float64], rmse: Figure, duration_ps: float, path: Path
) -> None:
    """PNG of the forces' RMSE against the teacher in the course of a run.

    Parameters
    ----------
    rmse_of_frames : ndarray
        (frames,), eV/angstrom, evenly spread over the run.
    rmse : Figure
        Of all frames, drawn as a line.
    duration_ps : float
        Length of the run.
    path : Path
        Of the PNG.

    Raises
    ------
    InputError
        If `path` cannot be written.
    """
    with single_figure(path, "time (ps)", f"{rmse.title} ({rmse.unit})") as axes:
        time = np.linspace(0.0, duration_ps, len(rmse_of_frames))
        axes.plot(time, rmse_of_frames, marker="o", markersize=3.0, linewidth=0.8)
        axes.axhline(rmse.value, color="black", linewidth=1.0)
        axes.set_ylim(bottom=0.0)


class RdfCurves(NamedTuple):
    """g(r) of one run with its standard error."""

    g: NDArray[np.float64]  # (pairs, R)
    standard_error: NDArray[np.float64]  # (pairs, R)


def plot_rdf(
    r: NDArray[np.float64], pairs: Sequence[str], runs: Mapping[str, RdfCurves], path: Path
) -> None:
    """PNG of g(r) of runs by label, one panel a pair of elements, within two standard errors.

    Parameters
    ----------
    r : ndarray
        (R,), distances, angstrom.
    pairs : Sequence[str]
        Sequence of str Pairs of elements, such as "C-O".
    runs : Mapping[str, RdfCurves]
        Mapping of str to RdfCurves By label.
    path : Path
        Of the PNG.

    Raises
    ------
    InputError
        If `path` cannot be written.
    """
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Canvas(figsize=(3.2 * columns, 2.4 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for panel in panels[len(pairs) :]:
        panel.set_visible(False)
    for index, (pair, panel) in enumerate(zip(pairs, panels, strict=False)):
        for (label, run), colour in zip(runs.items(), COLOURS, strict=False):
            g, error = run.g[index], run.standard_error[index]
            panel.plot(r, g, color=colour, linewidth=1.0, label=label)
            panel.fill_between(
                r, g - 2.0 * error, g + 2.0 * error, color=colour, alpha=0.3, linewidth=0.0
            )
        panel.set_title(pair, fontsize=FONT_SIZE)
        panel.tick_params(labelsize=FONT_SIZE - 1, labelbottom=True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("distance (angstrom)", fontsize=FONT_SIZE)
    figure.supylabel("g(r); of an open system, density of distances (1/angstrom)", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, fontsize=FONT_SIZE, loc="outside upper left", ncols=4, frameon=False
    )
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


class SpectrumCurve(NamedTuple):
    """Vibrational density of states of one run."""

    frequency_per_cm: NDArray[np.float64]  # (W,)
    power: NDArray[np.float64]  # (W,), cm


def plot_spectra(runs: Mapping[str, SpectrumCurve], highest_per_cm: float, path: Path) -> None:
    """PNG of vibrational spectra of runs by label, up to a wavenumber.

    Raises
    ------
    InputError
        If `path` cannot be written.
    """
    with single_figure(path, "wavenumber (1/cm)", "density of states (cm)") as axes:
        for label, run in runs.items():
            axes.plot(run.frequency_per_cm, run.power, linewidth=1.0, label=label)
        axes.set_xlim(0.0, highest_per_cm)


class Plot(NamedTuple):
    """An image, and its title and explanation for the page."""

    title: str
    caption: str
    uri: str


@contextmanager
def svg_figure(x: str, y: str, sink: list[str]) -> Iterator[Axes]:
    """Axes of a figure of one message, labelled; its data URI is put into `sink` at the end."""
    figure = Canvas(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLOURS)
    with matplotlib.rc_context({"path.simplify_threshold": 1.0}):  # pixels: nobody sees them
        yield axes
    axes.set_xlabel(x, fontsize=FONT_SIZE)
    axes.set_ylabel(y, fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if 0 < len(once) <= LEGEND_LONGEST:
        figure.legend(
            once.values(),
            once.keys(),
            fontsize=FONT_SIZE - 1,
            loc="outside upper left",
            ncols=3,
            frameon=False,
        )
    stream = BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "mlff-student"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    sink.append("data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode())


def logarithmic(axes: Axes, name: str) -> None:
    """An axis with plain numbers at 1, 2 and 5: the range is often less than a decade."""
    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
