"""`mlff-student analyze`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import Quiet, console


def analyze_command(
    trajectory: Annotated[Path, typer.Argument(help="Trajectory that MDTraj reads.")],
    topology: Annotated[Path, typer.Option("--top", help="PDB of the same atoms.")],
    log: Annotated[Path, typer.Option("--log", help="Thermo CSV of the same run.")],
    json: Annotated[
        Path | None, typer.Option("--json", help="JSON file; beside the trajectory if not given.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="PNG file; beside the trajectory if not given.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Drift, temperature and bonds of a run; exit status 1 when a threshold fails.

    Example: mlff-student analyze run.dcd --top run.pdb --log run.csv
    """
    from ..analysis import analyze
    from ..drift import read_thermo
    from ..plots import plot_drift
    from ..results import write_results
    from ..verdict import drift_table, load_thresholds, verdict

    analysis = analyze(trajectory, topology, log)
    record = analysis.as_record()
    checks = verdict(record, load_thresholds())
    label = trajectory.stem
    plot_drift({label: read_thermo(log)}, {label: analysis}, plot or trajectory.with_suffix(".png"))
    passed = all(check.passed for check in checks)
    results = record | {"passed": passed}
    results |= {f"{check.name}_passed": check.passed for check in checks}
    # Not run.json: that is the summary of `md`, by which it knows a finished run.
    write_results(json or trajectory.with_suffix(".analysis.json"), "analyze", "", [results])
    if not quiet:
        console.print(drift_table({label: record}, {label: checks}))
    if not passed:
        raise typer.Exit(1)
