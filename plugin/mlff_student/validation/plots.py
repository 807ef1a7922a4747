"""Draw the plots of a validation report from stored results, as SVG images in data URIs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mlff_student.core.figures import Figure, Threshold, figure_of, known_figures, symbols
from mlff_student.reporting.plots import COLOURS, Plot, logarithmic, svg_figure

MOST_MARKERS = 1000  # a plot with more frames has lines only, which makes it ten times smaller
MARKERS = {"openmm": "o", "lammps": "s", "ase": "D"}
Result = Mapping[str, Any]  # has the keys "record" and "series"


class Palette:
    """Colours and labels of the results in a plot.

    Colours distinguish models and engines, or structures if there is a single model and engine.

    Parameters
    ----------
    results : list[Result]
        All results in the plot.
    """

    def __init__(self, results: list[Result]) -> None:
        records = [result["record"] for result in results]
        keys = [key for key in ("model", "engine") if len({record[key] for record in records}) > 1]
        self._keys = keys or ["structure"]
        labels = dict.fromkeys(self.label(record) for record in records)
        self._colours = {label: COLOURS[k % len(COLOURS)] for k, label in enumerate(labels)}

    def label(self, record: Mapping[str, Any]) -> str:
        """Return the label of a record in the legend.

        Parameters
        ----------
        record : Mapping[str, Any]
            Record of a task.

        Returns
        -------
        str
            Label, such as "tiny, openmm".
        """
        return ", ".join(str(record[key]) for key in self._keys)

    def style(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return colour and label of a record's points and lines, as arguments of `Axes.plot`.

        Parameters
        ----------
        record : Mapping[str, Any]
            Record of a task.

        Returns
        -------
        dict[str, Any]
            Keyword arguments with colour and label.
        """
        return {"color": self._colours[self.label(record)], "label": self.label(record)}


def plots_of(
    step: str, results: Sequence[Result], thresholds: Mapping[str, Threshold]
) -> list[Plot]:
    """Draw all plots of a step for which there are data.

    Parameters
    ----------
    step : str
        Name of the step.
    results : Sequence[Result]
        Results of the step.
    thresholds : Mapping[str, Threshold]
        Thresholds by the keys of the figures, which are drawn as dashed lines.

    Returns
    -------
    list[Plot]
        The plots.
    """
    by_kind: dict[str, list[Result]] = {}
    for result in results:
        by_kind.setdefault(result["record"].get("ensemble", "comparison"), []).append(result)
    nve = by_kind.get("nve", [])
    plots: list[Plot | None] = []
    axis = {
        "temperature_ladder": ("target_temperature_k", "starting temperature (K)", "linear"),
        "timestep_ladder": ("timestep_fs", "timestep (fs)", "log"),
        "size_ladder": ("atoms", "number of atoms", "log"),
    }.get(step)
    if axis and nve:
        plots += [_series(nve, thresholds, figure, *axis) for figure in SERIES_FIGURES]
        if step == "timestep_ladder":
            plots.append(_convergence(nve))
    elif nve:
        plots += [
            _energy(nve),
            _dots(nve, thresholds, "drift_mev_per_atom_ps"),
            _dots(nve, thresholds, "force_rmse_ev_per_angstrom"),
            _force_time(nve),
        ]
    plots.append(_density(by_kind.get("npt", [])))
    plots += _rdf(by_kind.get("comparison", []))
    plots += _spectra(by_kind.get("comparison", []))
    return [plot for plot in plots if plot]


SERIES_FIGURES = ("drift_mev_per_atom_ps", "force_rmse_ev_per_angstrom", "bond_deviation_angstrom")


def _energy(results: list[Result]) -> Plot | None:
    kept = [result for result in results if result["series"].get("energy_mev_per_atom")]
    if not kept:
        return None
    palette, sink = Palette(kept), []
    with svg_figure("time (ps)", "total energy - start (meV/atom)", sink) as axes:
        for result in kept:
            time, energy = result["series"]["time_ps"], result["series"]["energy_mev_per_atom"]
            axes.plot(
                time, _floats(energy), linewidth=0.7, alpha=0.7, **palette.style(result["record"])
            )
    return Plot("Total energy", "Each line is a run at constant energy.", sink[0])


def _dots(results: list[Result], thresholds: Mapping[str, Threshold], name: str) -> Plot | None:
    kept = [result for result in results if result["record"].get(name) is not None]
    if not kept:
        return None
    palette, sink = Palette(kept), []
    records = [result["record"] for result in kept]
    cases = list(dict.fromkeys(map(_case, records)))
    title, label = _words(name)
    with svg_figure(label, "", sink) as axes:
        for record in records:
            figure = figure_of(record, name)
            assert figure is not None  # all `records` have it
            axes.errorbar(
                abs(figure.value),
                cases.index(_case(record)),
                xerr=figure.standard_error,
                marker=MARKERS[record["engine"]],
                markersize=5,
                linestyle="none",
                **palette.style(record),
            )
        _limit(axes, thresholds, name, vertical=True)
        axes.set_yticks(range(len(cases)), cases)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
    return Plot(title, "The dashed line is the threshold. Bars are standard errors.", sink[0])


def _series(
    results: list[Result],
    thresholds: Mapping[str, Threshold],
    name: str,
    key: str,
    label: str,
    scale: str,
) -> Plot | None:
    kept = [result for result in results if result["record"].get(name) is not None]
    if not kept:
        return None
    palette, sink = Palette(kept), []
    title, unit = _words(name)
    with svg_figure(label, unit, sink) as axes:
        lines: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for result in kept:
            record = result["record"]
            case = "" if key == "atoms" else record["structure"]
            lines.setdefault((record["model"], record["engine"], case), []).append(record)
        for records in lines.values():
            records = sorted(records, key=lambda record: record[key])
            axes.plot(
                [record[key] for record in records],
                [abs(record[name]) for record in records],
                marker=MARKERS[records[0]["engine"]],
                markersize=5,
                linewidth=1.0,
                **palette.style(records[0]),
            )
        _limit(axes, thresholds, name, vertical=False)
        if scale == "log":
            logarithmic(axes, "x")
        logarithmic(axes, "y")
    quantity = label.split(" (")[0]
    return Plot(f"{title} against {quantity}", "The dashed line is the threshold.", sink[0])


def _convergence(results: list[Result]) -> Plot | None:
    key, name = "timestep_fs", "energy_fluctuation_mev_per_atom"
    kept = [result for result in results if result["record"].get(name)]
    if not kept:
        return None
    palette, sink = Palette(kept), []
    with svg_figure("timestep (fs)", "energy fluctuation (meV/atom)", sink) as axes:
        lines: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for result in kept:
            record = result["record"]
            lines.setdefault((record["model"], record["engine"], record["structure"]), []).append(
                record
            )
        for records in lines.values():
            records = sorted(records, key=lambda record: record[key])
            steps = np.array([record[key] for record in records])
            values = np.array([record[name] for record in records])
            axes.plot(
                steps, values, marker=MARKERS[records[0]["engine"]], **palette.style(records[0])
            )
            axes.plot(steps, values[0] * (steps / steps[0]) ** 2, color="0.6", linestyle=":")
        logarithmic(axes, "x")
        logarithmic(axes, "y")
    caption = "Dotted lines grow as the square of the timestep, from the shortest timestep."
    return Plot("Energy fluctuation against timestep", caption, sink[0])


def _force_time(results: list[Result]) -> Plot | None:
    kept = [result for result in results if result["series"].get("force_rmse_ev_per_angstrom")]
    if not kept:
        return None
    palette, sink = Palette(kept), []
    few = sum(len(result["series"]["force_time_ps"]) for result in kept) <= MOST_MARKERS
    with svg_figure("time (ps)", "force RMSE of a frame (eV/Å)", sink) as axes:
        for result in kept:
            series, record = result["series"], result["record"]
            axes.plot(
                series["force_time_ps"],
                series["force_rmse_ev_per_angstrom"],
                marker=MARKERS[record["engine"]] if few else "",
                markersize=3,
                linewidth=0.7,
                **palette.style(record),
            )
        axes.set_ylim(bottom=0)
    caption = "Each point is a frame." if few else "Each line is a run."
    return Plot("Force error along the runs", caption, sink[0])


def _density(results: list[Result]) -> Plot | None:
    kept = [result for result in results if result["series"].get("density_g_per_cm3")]
    if not kept:
        return None
    palette, sink = Palette(kept), []
    with svg_figure("time (ps)", "density (g/cm³)", sink) as axes:
        for result in kept:
            series = result["series"]
            density = series["density_g_per_cm3"]
            time = np.linspace(series["time_ps"][0], series["time_ps"][-1], len(density))
            axes.plot(time, density, linewidth=0.9, **palette.style(result["record"]))
        measured = {result["record"].get("experiment_g_per_cm3") for result in kept} - {None}
        for experiment in measured:
            axes.axhline(experiment, color="black", linestyle="dashed", linewidth=0.9)
    caption = "Each line is a run." + (" The dashed line is the experiment." if measured else "")
    return Plot("Density at constant pressure", caption, sink[0])


def _rdf(results: list[Result]) -> list[Plot]:
    kept = [result for result in results if result["series"].get("r_angstrom")]
    if not kept:
        return []
    palette = Palette(kept)
    pairs = [
        key.removeprefix("g_teacher_") for key in kept[0]["series"] if key.startswith("g_teacher_")
    ]
    plots = []
    for pair in pairs:
        sink: list[str] = []
        with svg_figure("r (Å)", f"g(r) of {pair}", sink) as axes:
            first = kept[0]["series"]
            axes.fill_between(
                first["r_angstrom"], first[f"g_teacher_{pair}"], color="0.8", label="teacher"
            )
            for result in kept:
                series = result["series"]
                axes.plot(
                    series["r_angstrom"],
                    series[f"g_student_{pair}"],
                    linewidth=1.0,
                    **palette.style(result["record"]),
                )
            axes.set_ylim(bottom=0)
            axes.margins(x=0)
        error_key = Figure(f"rdf_error_{pair}", np.nan, "%").key
        text = ", ".join(
            f"{palette.label(result['record'])} {result['record'][error_key]:.1f} %"
            for result in kept
            if result["record"].get(error_key) is not None
        )
        title = f"Radial distribution of {pair} between molecules"
        plots.append(Plot(title, f"Error of g(r): {text}.", sink[0]))
    return plots


def _spectra(results: list[Result]) -> list[Plot]:
    """Draw the spectra of the students above the teacher's, in a plot for each structure."""
    kept = [result for result in results if result["series"].get("frequency_per_cm")]
    plots = []
    for structure in dict.fromkeys(result["record"]["structure"] for result in kept):
        shown = [result for result in kept if result["record"]["structure"] == structure]
        palette, sink = Palette(shown), []
        with svg_figure("wavenumber (1/cm)", "density of states (cm)", sink) as axes:
            first = shown[0]["series"]
            axes.fill_between(
                first["frequency_per_cm"], first["power_teacher"], color="0.8", label="teacher"
            )
            for result in shown:
                series = result["series"]
                axes.plot(
                    series["frequency_per_cm"],
                    series["power_student"],
                    linewidth=1.0,
                    **palette.style(result["record"]),
                )
            axes.set_ylim(bottom=0)
            axes.margins(x=0)
        text = ", ".join(
            f"{palette.label(record)} {record['spectrum_overlap_percent']:.0f} %"
            for record in (result["record"] for result in shown)
        )
        noise = shown[0]["record"]["spectrum_overlap_noise_percent"]
        caption = (
            f"Overlap with the teacher's spectrum: {text}. The two halves of the teacher's run "
            f"overlap by {noise:.0f} %."
        )
        plots.append(Plot(f"Vibrational spectrum of {structure}", caption, sink[0]))
    return plots


def _limit(axes: Axes, thresholds: Mapping[str, Threshold], name: str, *, vertical: bool) -> None:
    if name in thresholds:
        draw = axes.axvline if vertical else axes.axhline
        draw(thresholds[name].value, color="0.4", linestyle="--", linewidth=1.0)


def _case(record: Mapping[str, Any]) -> str:
    return f"{record['structure']}, {record['duration_ps']:.0f} ps"


def _words(key: str) -> tuple[str, str]:
    """Return the title of a figure, and the label of an axis with its absolute value."""
    known = known_figures()[key]
    title = known.title[0].upper() + known.title[1:]
    return title, f"{known.title}, absolute ({symbols(known.unit)})"


def _floats(values: list[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in values]
