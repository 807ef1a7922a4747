"""The report's plots: one message each, as SVG in a data URI. They are made of results alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mlff_student.core.figures import Threshold
from mlff_student.reporting.plots import COLOURS, Plot, logarithmic, svg_figure
from mlff_student.reporting.verdict import stderr_of

MOST_MARKERS = 1000  # in a figure: beyond, frames are lines alone, which take a tenth of the room
MARKERS = {"openmm": "o", "lammps": "s", "ase": "D"}
Result = Mapping[str, Any]  # record and series


class Palette:
    """A colour for each model and a marker for each engine; colours by engine, or by structure,
    where there is one of the others.
    """

    def __init__(self, results: list[Result]) -> None:
        records = [one["record"] for one in results]
        keys = [key for key in ("model", "engine") if len({one[key] for one in records}) > 1]
        self._keys = keys or ["structure"]
        labels = dict.fromkeys(self.label(one) for one in records)
        self._colours = {label: COLOURS[k % len(COLOURS)] for k, label in enumerate(labels)}

    def label(self, record: Mapping[str, Any]) -> str:
        """What a record's points are called."""
        return ", ".join(str(record[key]) for key in self._keys)

    def style(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Of points and lines."""
        return {"color": self._colours[self.label(record)], "label": self.label(record)}


def plots_of(step: str, results: list[Result], thresholds: Mapping[str, Threshold]) -> list[Plot]:
    """All plots of a step's results, those without data left out."""
    by_kind: dict[str, list[Result]] = {}
    for one in results:
        record = one["record"]
        by_kind.setdefault(record.get("ensemble", "comparison"), []).append(one)
    nve = by_kind.get("nve", [])
    found: list[Plot | None] = []
    axis = {
        "temperature_ladder": ("target_temperature_k", "temperature asked for (K)", "linear"),
        "timestep_ladder": ("timestep_fs", "timestep (fs)", "log"),
        "size_ladder": ("atoms", "atoms", "log"),
    }.get(step)
    if axis and nve:
        found += [_ladder(nve, thresholds, figure, *axis) for figure in LADDER_FIGURES]
        if step == "timestep_ladder":
            found.append(_convergence(nve))
    elif nve:
        found += [
            _energy(nve),
            _dots(nve, thresholds, "drift_mev_per_atom_ps"),
            _dots(nve, thresholds, "force_rmse_ev_per_angstrom"),
            _force_time(nve),
        ]
    found.append(_density(by_kind.get("npt", [])))
    found += _rdf(by_kind.get("comparison", []))
    found += _spectra(by_kind.get("comparison", []))
    return [plot for plot in found if plot]


TITLES = {
    "drift_mev_per_atom_ps": ("Energy drift", "|drift| (meV/atom/ps)"),
    "force_rmse_ev_per_angstrom": ("Force error against the teacher", "RMSE (eV/Å)"),
    "bond_deviation_angstrom": ("Largest bond deviation", "deviation (Å)"),
}
LADDER_FIGURES = tuple(TITLES)


def _energy(results: list[Result]) -> Plot | None:
    with_series = [one for one in results if one["series"].get("energy_mev_per_atom")]
    if not with_series:
        return None
    palette, sink = Palette(with_series), []
    with svg_figure("time (ps)", "total energy - start (meV/atom)", sink) as axes:
        for one in with_series:
            time, energy = one["series"]["time_ps"], one["series"]["energy_mev_per_atom"]
            axes.plot(
                time, _floats(energy), linewidth=0.7, alpha=0.7, **palette.style(one["record"])
            )
    return Plot("Total energy", "Each line is a run at constant energy.", sink[0])


def _dots(results: list[Result], thresholds: Mapping[str, Threshold], name: str) -> Plot | None:
    records = [one["record"] for one in results if one["record"].get(name) is not None]
    if not records:
        return None
    palette, sink = Palette([one for one in results if one["record"] in records]), []
    cases = list(dict.fromkeys(_case(one) for one in records))
    title, unit = TITLES[name]
    with svg_figure(unit, "", sink) as axes:
        for one in records:
            style = palette.style(one)
            error = _stderr(one, name)
            axes.errorbar(
                abs(one[name]),
                cases.index(_case(one)),
                xerr=None if error is None else error,
                marker=MARKERS[one["engine"]],
                markersize=5,
                linestyle="none",
                **style,
            )
        _limit(axes, thresholds, name, vertical=True)
        axes.set_yticks(range(len(cases)), cases)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
    return Plot(title, "Dashed: the threshold. Bars: one standard error.", sink[0])


def _ladder(
    results: list[Result],
    thresholds: Mapping[str, Threshold],
    name: str,
    key: str,
    label: str,
    scale: str,
) -> Plot | None:
    kept = [one for one in results if one["record"].get(name) is not None]
    if not kept:
        return None
    palette, sink = Palette(kept), []
    title, unit = TITLES[name]
    with svg_figure(label, unit, sink) as axes:
        lines: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for one in kept:
            record = one["record"]
            case = "" if key == "atoms" else record["structure"]
            lines.setdefault((record["model"], record["engine"], case), []).append(record)
        for records in lines.values():
            records = sorted(records, key=lambda one: one[key])
            axes.plot(
                [one[key] for one in records],
                [abs(one[name]) for one in records],
                marker=MARKERS[records[0]["engine"]],
                markersize=5,
                linewidth=1.0,
                **palette.style(records[0]),
            )
        _limit(axes, thresholds, name, vertical=False)
        if scale == "log":
            logarithmic(axes, "x")
        logarithmic(axes, "y")
    return Plot(f"{title} along the ladder", "Dashed: the threshold.", sink[0])


def _convergence(results: list[Result]) -> Plot | None:
    key, name = "timestep_fs", "energy_fluctuation_mev_per_atom"
    kept = [one for one in results if one["record"].get(name)]
    if not kept:
        return None
    palette, sink = Palette(kept), []
    with svg_figure("timestep (fs)", "energy fluctuation (meV/atom)", sink) as axes:
        lines: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for one in kept:
            record = one["record"]
            lines.setdefault((record["model"], record["engine"], record["structure"]), []).append(
                record
            )
        for records in lines.values():
            records = sorted(records, key=lambda one: one[key])
            steps = np.array([one[key] for one in records])
            values = np.array([one[name] for one in records])
            axes.plot(
                steps, values, marker=MARKERS[records[0]["engine"]], **palette.style(records[0])
            )
            axes.plot(steps, values[0] * (steps / steps[0]) ** 2, color="0.6", linestyle=":")
        logarithmic(axes, "x")
        logarithmic(axes, "y")
    caption = "Dotted: proportional to the square of the timestep, from the shortest one."
    return Plot("Energy fluctuation against timestep", caption, sink[0])


def _force_time(results: list[Result]) -> Plot | None:
    kept = [one for one in results if one["series"].get("force_rmse_ev_per_angstrom")]
    if not kept:
        return None
    palette, sink = Palette(kept), []
    few = sum(len(one["series"]["force_time_ps"]) for one in kept) <= MOST_MARKERS
    with svg_figure("time (ps)", "force RMSE of a frame (eV/Å)", sink) as axes:
        for one in kept:
            series = one["series"]
            axes.plot(
                series["force_time_ps"],
                series["force_rmse_ev_per_angstrom"],
                marker=MARKERS[one["record"]["engine"]] if few else "",
                markersize=3,
                linewidth=0.7,
                **palette.style(one["record"]),
            )
        axes.set_ylim(bottom=0)
    what = "Each point is a frame." if few else "Each line is a run."
    return Plot("Force error along the runs", what, sink[0])


def _density(results: list[Result]) -> Plot | None:
    kept = [one for one in results if one["series"].get("density_g_per_cm3")]
    if not kept:
        return None
    palette, sink = Palette(kept), []
    with svg_figure("time (ps)", "density (g/cm³)", sink) as axes:
        for one in kept:
            series = one["series"]
            time = np.linspace(
                series["time_ps"][0], series["time_ps"][-1], len(series["density_g_per_cm3"])
            )
            axes.plot(
                time, series["density_g_per_cm3"], linewidth=0.9, **palette.style(one["record"])
            )
    return Plot("Density at constant pressure", "Each line is a run.", sink[0])


def _rdf(results: list[Result]) -> list[Plot]:
    kept = [one for one in results if one["series"].get("r_angstrom")]
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
            for one in kept:
                series = one["series"]
                axes.plot(
                    series["r_angstrom"],
                    series[f"g_student_{pair}"],
                    linewidth=1.0,
                    **palette.style(one["record"]),
                )
            axes.set_ylim(bottom=0)
            axes.margins(x=0)
        errors = [one["record"].get(f"rdf_error_{pair}_percent") for one in kept]
        text = ", ".join(
            f"{palette.label(one['record'])} {error:.1f} %"
            for one, error in zip(kept, errors, strict=True)
            if error is not None
        )
        title = f"Radial distribution of {pair} between molecules"
        plots.append(Plot(title, f"Error: {text}.", sink[0]))
    return plots


def _spectra(results: list[Result]) -> list[Plot]:
    """One for each structure, students over the teacher."""
    kept = [one for one in results if one["series"].get("frequency_per_cm")]
    plots = []
    for structure in dict.fromkeys(one["record"]["structure"] for one in kept):
        of_one = [one for one in kept if one["record"]["structure"] == structure]
        palette, sink = Palette(of_one), []
        with svg_figure("wavenumber (1/cm)", "density of states (cm)", sink) as axes:
            first = of_one[0]["series"]
            axes.fill_between(
                first["frequency_per_cm"], first["power_teacher"], color="0.8", label="teacher"
            )
            for one in of_one:
                series = one["series"]
                axes.plot(
                    series["frequency_per_cm"],
                    series["power_student"],
                    linewidth=1.0,
                    **palette.style(one["record"]),
                )
            axes.set_ylim(bottom=0)
            axes.margins(x=0)
        text = ", ".join(
            f"{palette.label(one['record'])} {one['record']['spectrum_overlap_percent']:.0f} %"
            for one in of_one
        )
        noise = of_one[0]["record"]["spectrum_overlap_noise_percent"]
        caption = f"Overlap: {text}; of the teacher's halves {noise:.0f} %."
        plots.append(Plot(f"Vibrations of {structure}", caption, sink[0]))
    return plots


def _limit(axes: Axes, thresholds: Mapping[str, Threshold], name: str, *, vertical: bool) -> None:
    if name in thresholds:
        draw = axes.axvline if vertical else axes.axhline
        draw(thresholds[name].value, color="0.4", linestyle="--", linewidth=1.0)


def _case(record: Mapping[str, Any]) -> str:
    return f"{record['structure']}, {record['duration_ps']:.0f} ps"


def _stderr(record: Mapping[str, Any], name: str) -> float | None:
    error = stderr_of(record, name)
    return error if np.isfinite(error) else None


def _floats(values: list[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in values]
