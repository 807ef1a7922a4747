"""Figures on paper: what a run did with its energy, how a training went, how fast it goes."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mlff_student.analysis import Analysis
from mlff_student.analysis.forces import TrajectoryForceErrors
from mlff_student.analysis.rdf import Rdf
from mlff_student.analysis.spectrum import HIGHEST, Spectrum
from mlff_student.analysis.thermo import Thermo
from mlff_student.core.files import atomic_write
from mlff_student.reporting.verdict import with_error

# Okabe and Ito's palette, which colour-blind readers tell apart (jfly.uni-koeln.de/color).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FONT_SIZE = 10
LONG_LABEL = 15  # letters: four such do not fit above a figure
LEGEND_LONGEST = 12  # entries, of figures in a page


@contextmanager
def single_figure(path: Path, x: str, y: str, *, yscale: str = "linear") -> Iterator[Axes]:
    """Axes of a figure of one message, labelled; written as PNG when the block ends.

    Raises
    ------
    InputError : `path` cannot be written.
    """
    figure = Figure(figsize=(6.0, 4.2), layout="constrained")
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


def plot_drift(thermos: Mapping[str, Thermo], analyses: Mapping[str, Analysis], path: Path) -> None:
    """PNG of total energy with its fitted drift, above temperature, for runs by label.

    Raises
    ------
    InputError : `path` cannot be written.
    """
    figure = Figure(figsize=(7.0, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for index, (label, thermo) in enumerate(thermos.items()):
        run = analyses[label]
        colour = COLOURS[index % len(COLOURS)]
        time = thermo.time_ps
        energy = 1e3 * thermo.total_ev / run.atoms  # meV/atom
        finite = np.isfinite(energy)
        start = energy[finite][0] if finite.any() else 0.0
        noisy = {"color": colour, "linewidth": 0.6, "alpha": 0.4}
        drift = with_error(run.drift.drift_mev_per_atom_ps, run.drift.drift_stderr_mev_per_atom_ps)
        fit = energy.mean() - start + run.drift.drift_mev_per_atom_ps * (time - time.mean())
        above.plot(time, energy - start, **noisy)
        above.plot(
            time,
            fit,
            color=colour,
            linewidth=2.0,
            label=f"{label}: {drift} meV/atom/ps, "
            f"{run.drift.temperature_k:.0f} ± {run.drift.temperature_std_k:.0f} K",
        )
        below.plot(time, thermo.temperature_k, **noisy)
        below.axhline(run.drift.temperature_k, color=colour, linewidth=2.0)
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


def plot_force_errors(errors: TrajectoryForceErrors, duration_ps: float, path: Path) -> None:
    """PNG of the forces' RMSE against the teacher in the course of a run.

    Raises
    ------
    InputError : `path` cannot be written.
    """
    with single_figure(path, "time (ps)", "force RMSE (eV/angstrom)") as axes:
        time = np.linspace(0.0, duration_ps, len(errors.rmse_of_frames))
        axes.plot(time, errors.rmse_of_frames, marker="o", markersize=3.0, linewidth=0.8)
        axes.axhline(errors.force_rmse_ev_per_angstrom, color="black", linewidth=1.0)
        axes.set_ylim(bottom=0.0)


def plot_rdf(runs: Mapping[str, Rdf], path: Path) -> None:
    """PNG of g(r) of runs by label, one panel a pair of elements, within two standard errors.

    Raises
    ------
    InputError : `path` cannot be written.
    """
    pairs = next(iter(runs.values())).pairs
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for panel in panels[len(pairs) :]:
        panel.set_visible(False)
    for index, (pair, panel) in enumerate(zip(pairs, panels, strict=False)):
        for (label, run), colour in zip(runs.items(), COLOURS, strict=False):
            low, high = (run.g[index] + sign * run.stderr[index] for sign in (-2.0, 2.0))
            panel.plot(run.r, run.g[index], color=colour, linewidth=1.0, label=label)
            panel.fill_between(run.r, low, high, color=colour, alpha=0.3, linewidth=0.0)
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


def plot_spectra(runs: Mapping[str, Spectrum], path: Path) -> None:
    """PNG of vibrational spectra of runs by label.

    Raises
    ------
    InputError : `path` cannot be written.
    """
    with single_figure(path, "wavenumber (1/cm)", "density of states (cm)") as axes:
        for label, run in runs.items():
            axes.plot(run.frequency_per_cm, run.power, linewidth=1.0, label=label)
        axes.set_xlim(0.0, HIGHEST)


def plot_roofline(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """PNG of the rate each backend reaches on one thread against its arithmetic intensity, under
    the roof of the machine's matrix products and copies of memory, all of the same run.

    Parameters
    ----------
    records : of `benchmark kernels`.

    Raises
    ------
    InputError : `path` cannot be written.
    """
    kernels = [one for one in records if one["measurement"] == "kernels" and one["ms"]]
    threads = min(one["threads"] for one in kernels)
    kernels = [one for one in kernels if one["threads"] == threads]
    sgemm = median(one["sgemm_gflop_per_s"] for one in kernels)
    bandwidth = median(one["copy_gb_per_s"] for one in kernels)
    models = list(dict.fromkeys(one["model"] for one in kernels))
    x, y = "arithmetic intensity (FLOP/byte)", "rate (GFLOP/s)"
    with single_figure(path, x, y, yscale="log") as axes:
        ends = np.array([1.0, sgemm / bandwidth, 100.0])
        axes.plot(ends, np.minimum(sgemm, bandwidth * ends), color="black")
        axes.text(100.0, 1.1 * sgemm, f"SGEMM {sgemm:.0f} GFLOP/s", ha="right", fontsize=FONT_SIZE)
        axes.text(
            1.2,
            1.1 * bandwidth,
            f"copy {bandwidth:.0f} GB/s",
            ha="left",
            va="top",
            fontsize=FONT_SIZE,
        )
        for one in kernels:
            colour = COLOURS[models.index(one["model"]) % len(COLOURS)]
            axes.plot(
                one["flop_per_byte"],
                one["gflop_per_s"],
                marker="o",
                markersize=4.0 + 1.5 * np.log10(one["atoms"]),
                color=colour,
                markerfacecolor=colour if one["backend"] == "native" else "none",
                linestyle="none",
            )
        for model, colour in zip(models, COLOURS, strict=False):
            axes.plot([], [], color=colour, marker="o", linestyle="none", label=Path(model).stem)
        smallest, largest = (end(one["atoms"] for one in kernels) for end in (min, max))
        axes.set_title(
            f"full: native, open: portable; {smallest:,} (small) to {largest:,} atoms (large), "
            f"threads: {threads}",
            fontsize=FONT_SIZE - 1,
        )
        axes.set_xscale("log")


class Plot(NamedTuple):
    """An image, and its title and explanation for the page."""

    title: str
    caption: str
    uri: str


@contextmanager
def svg_figure(x: str, y: str, sink: list[str]) -> Iterator[Axes]:
    """Axes of a figure of one message, labelled; its data URI is put into `sink` at the end."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
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
