"""Draw plots: energy drift, force errors, radial distribution functions and spectra."""

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
LONG_LABEL = 15  # letters; four labels of this length do not fit above a plot
LEGEND_LONGEST = 12  # entries; a plot in a page with more has no legend


@contextmanager
def single_figure(path: Path, x: str, y: str, *, yscale: str = "linear") -> Iterator[Axes]:
    """Yield the axes of a plot with labelled axes, and write it as PNG when the block ends.

    Parameters
    ----------
    path : Path
        PNG file to write.
    x, y : str
        Labels of the axes, with units.
    yscale : str
        Scale of the vertical axis: "linear" or "log".

    Yields
    ------
    Axes
        Axes to draw on.

    Raises
    ------
    InputError
        If `path` cannot be written.
    """
    figure = Canvas(figsize=(6.0, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLOURS)
    axes.set_yscale(yscale)  # before drawing, because it removes ticks that were set
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


@contextmanager
def panel_figure(
    path: Path, titles: Sequence[str], x: str, y: str, *, columns: int = 3, sharex: bool = True
) -> Iterator[list[Axes]]:
    """Yield small axes with titles and common labels, and write them as PNG when the block ends.

    Parameters
    ----------
    path : Path
        PNG file to write.
    titles : Sequence[str]
        Titles of the panels, at least one.
    x, y : str
        Common labels of the axes, with units.
    columns : int
        Largest number of panels in a row.
    sharex : bool
        Whether all panels have the same horizontal range.

    Yields
    ------
    list[Axes]
        Axes to draw on. The legend is that of the first.

    Raises
    ------
    InputError
        If `path` cannot be written.
    """
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure = Canvas(figsize=(3.2 * columns, 2.4 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=sharex).ravel().tolist()
    for panel in panels[len(titles) :]:
        panel.set_visible(False)
    yield panels[: len(titles)]
    for title, panel in zip(titles, panels, strict=False):
        panel.set_title(title, fontsize=FONT_SIZE)
        panel.tick_params(labelsize=FONT_SIZE - 1, labelbottom=True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(x, fontsize=FONT_SIZE)
    figure.supylabel(y, fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    if labels:
        figure.legend(
            handles, labels, fontsize=FONT_SIZE, loc="outside upper left", ncols=4, frameon=False
        )
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


class EnergyCourse(NamedTuple):
    """Energy and temperature of a run against time, for `plot_drift`.

    Attributes
    ----------
    time_ps : NDArray[np.float64]
        Times, (rows,), ps.
    energy_mev_per_atom : NDArray[np.float64]
        Total energy, (rows,), meV/atom.
    temperature_k : NDArray[np.float64]
        Temperature, (rows,), K.
    drift : Figure
        Slope of the energy, meV/atom/ps.
    temperature, temperature_std : Figure
        Mean and standard deviation of the temperature, K.
    """

    time_ps: NDArray[np.float64]
    energy_mev_per_atom: NDArray[np.float64]
    temperature_k: NDArray[np.float64]
    drift: Figure
    temperature: Figure
    temperature_std: Figure


def plot_drift(runs: Mapping[str, EnergyCourse], path: Path) -> None:
    """Plot the total energy of runs with the fitted drift, above the temperature.

    Parameters
    ----------
    runs : Mapping[str, EnergyCourse]
        Runs by the label in the legend.
    path : Path
        PNG file to write.

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
    # The legend is above the axes, where it covers no curve.
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
    """Plot the root mean square error of a run's forces against time.

    Parameters
    ----------
    rmse_of_frames : NDArray[np.float64]
        Error of each of the frames, which are evenly spaced in the run, (frames,), eV/angstrom.
    rmse : Figure
        Error of all frames together, which is drawn as a line, eV/angstrom.
    duration_ps : float
        Length of the run, ps.
    path : Path
        PNG file to write.

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
    """Radial distribution functions of a run with their standard errors.

    Attributes
    ----------
    g, standard_error : NDArray[np.float64]
        g(r) of each pair of elements and its standard error, (pairs, R).
    """

    g: NDArray[np.float64]
    standard_error: NDArray[np.float64]


def plot_rdf(
    r: NDArray[np.float64], pairs: Sequence[str], runs: Mapping[str, RdfCurves], path: Path
) -> None:
    """Plot the g(r) of runs in a panel for each pair of elements, with two standard errors.

    Parameters
    ----------
    r : NDArray[np.float64]
        Distances, (R,), angstrom.
    pairs : Sequence[str]
        Pairs of elements, such as "C-O".
    runs : Mapping[str, RdfCurves]
        Runs by the label in the legend.
    path : Path
        PNG file to write.

    Raises
    ------
    InputError
        If `path` cannot be written.
    """
    x, y = "distance (angstrom)", "g(r); open system: density of distances (1/angstrom)"
    with panel_figure(path, pairs, x, y) as panels:
        for index, panel in enumerate(panels):
            for (label, run), colour in zip(runs.items(), COLOURS, strict=False):
                g, error = run.g[index], run.standard_error[index]
                panel.plot(r, g, color=colour, linewidth=1.0, label=label)
                panel.fill_between(
                    r, g - 2.0 * error, g + 2.0 * error, color=colour, alpha=0.3, linewidth=0.0
                )


class SpectrumCurve(NamedTuple):
    """Vibrational density of states of a run.

    Attributes
    ----------
    frequency_per_cm : NDArray[np.float64]
        Wavenumbers, (W,), 1/cm.
    power : NDArray[np.float64]
        Density of states, (W,), cm.
    """

    frequency_per_cm: NDArray[np.float64]
    power: NDArray[np.float64]


def plot_spectra(runs: Mapping[str, SpectrumCurve], highest_per_cm: float, path: Path) -> None:
    """Plot the vibrational spectra of runs.

    Parameters
    ----------
    runs : Mapping[str, SpectrumCurve]
        Runs by the label in the legend.
    highest_per_cm : float
        Largest wavenumber that is shown, 1/cm.
    path : Path
        PNG file to write.

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
    """An image for a page, with its title and its explanation.

    Attributes
    ----------
    title : str
        Title above the image.
    caption : str
        Explanation below the image.
    uri : str
        The image as a data URI.
    """

    title: str
    caption: str
    uri: str


@contextmanager
def svg_figure(x: str, y: str, sink: list[str]) -> Iterator[Axes]:
    """Yield the axes of a plot for a page, and append its data URI to a list when the block ends.

    Parameters
    ----------
    x, y : str
        Labels of the axes, with units.
    sink : list[str]
        List to which the SVG image is appended, as a data URI.

    Yields
    ------
    Axes
        Axes to draw on.
    """
    figure = Canvas(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLOURS)
    # Details smaller than a pixel are left out, which makes the image smaller.
    with matplotlib.rc_context({"path.simplify_threshold": 1.0}):
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
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 of each decade.

    Parameters
    ----------
    axes : Axes
        Axes to change.
    name : str
        "x" or "y".
    """
    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
