"""`mlff-student distill`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from mlff_student.cli.common import Json, Quiet, console, quieten, resumable

distill_app = typer.Typer(
    no_args_is_help=True,
    help="""From a teacher to a student.

    Example: mlff-student distill quick --molecule examples/ethanol.xyz --preset tiny
    """,
)

RecipeFile = Annotated[
    Path, typer.Argument(help="YAML file; see mlff_student/distill/organic.yaml.")
]
DataFolder = Annotated[Path, typer.Option("--data", help="Folder of dataset.h5 and trainings.")]
Preset = Annotated[str, typer.Option("--model", help="A preset with a section in the recipe.")]
Workers = Annotated[int, typer.Option(help="Teacher processes on this machine.")]
Compile = Annotated[
    bool, typer.Option("--compile/--no-compile", help="Fuse the step with torch.compile.")
]


Records = list[dict[str, Any]]


@contextmanager
def reported(command: str, model: str, json: Path | None, quiet: bool) -> Iterator[Records]:
    """A long command that prints nothing if `quiet`, and whose records go to `json` at its end."""
    from mlff_student.core.results import write_results

    quieten(quiet)
    records: Records = []
    with resumable():
        yield records
    if json:
        write_results(json, f"distill {command}", model, records)


def held_out_record(card: dict[str, Any]) -> dict[str, Any]:
    """The figures of a card over all held-out frames."""
    errors = card["accuracy"]["held_out_molecules"]
    return {key: value for key, value in errors.items() if not isinstance(value, dict)}


@distill_app.command("sample")
def sample_command(
    recipe: RecipeFile,
    data: DataFolder,
    workers: Workers = 2,
    scheduler: Annotated[
        str, typer.Option(help="Dask scheduler (tcp://host:port) whose workers label instead.")
    ] = "",
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Make the recipe's structures, sample them and label every frame by the teacher.

    Goes on where a killed run stopped. Next: distill check, distill train.

    Example: mlff-student distill sample plugin/mlff_student/distill/organic.yaml
    --data runs/organic
    """
    from mlff_student.distill.dataset import read_summary
    from mlff_student.distill.label import label
    from mlff_student.distill.recipe import read_recipe

    dataset = data / "dataset.h5"
    with reported("sample", "", json, quiet) as records:
        label(read_recipe(recipe), dataset, workers, scheduler)
        summary = read_summary(dataset)
        records.append(
            {
                "dataset": str(dataset),
                "structures": len(summary.names),
                "frames_attempted": int(summary.attempted.sum()),
                "frames_labelled": int(summary.labelled.sum()),
            }
        )


@distill_app.command("check")
def check_command(
    dataset: Annotated[Path, typer.Argument(help="HDF5 file that `distill sample` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the report; DATASET.check if not given."),
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Hold a dataset against the quality gate: GO, or NO-GO and exit status 1.

    The folder receives report.md, report.json and plots. Limits and their reasons are in
    mlff_student/distill/gate.yaml.

    Example: mlff-student distill check checkpoints/data/organic.h5 -o runs/organic.check
    """
    from mlff_student.core.results import write_results
    from mlff_student.distill.check import check_dataset
    from mlff_student.distill.check_report import records, write_report

    report = check_dataset(dataset, quiet)
    folder = output or dataset.with_suffix(".check")
    write_report(report, folder)
    if json:
        write_results(json, "distill check", "", records(report))
    if not quiet:
        table = Table("check", "found", "limit", "")
        for check in report.checks:
            *cells, outcome = check.cells
            style = {"pass": "green", "FAIL": "bold red"}.get(outcome, "yellow")
            table.add_row(*cells, f"[{style}]{outcome}[/]")
        console.print(table)
        console.print(f"{report.verdict}\nreport: {folder}/report.md", markup=False)
    if not report.passed:
        raise typer.Exit(1)


@distill_app.command("train")
def train_command(
    recipe: RecipeFile,
    data: DataFolder,
    model: Preset,
    extra: Annotated[
        list[Path] | None,
        typer.Option(help="Another dataset to train on as well; may be given again."),
    ] = None,
    initial: Annotated[
        Path | None, typer.Option(help="Checkpoint (model.pt) of the same preset to start from.")
    ] = None,
    structures: Annotated[
        int, typer.Option(help="Train on so many structures alone, for a learning curve; 0: all.")
    ] = 0,
    compiled: Compile = True,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Train one preset; go on where a killed training stopped.

    On several processes or GPUs: torchrun --nproc-per-node 2 -m mlff_student distill train ...

    Example: mlff-student distill train plugin/mlff_student/distill/organic.yaml
    --data runs/organic --model tiny
    """
    from mlff_student.distill.recipe import read_recipe
    from mlff_student.distill.train import train

    what, folder = read_recipe(recipe), data / model
    with reported("train", model, json, quiet) as records:
        checkpoint = train(
            what,
            model,
            data / "dataset.h5",
            folder,
            compiled=compiled,
            extra=extra or (),
            initial=initial,
            structures=structures,
            quiet=quiet,
        )
        training = checkpoint["training"]
        records.append(
            {
                "checkpoint": str(folder / "model.pt"),
                "steps": training["steps"],
                "seconds": training["seconds"],
            }
        )


@distill_app.command("rounds")
def rounds_command(
    recipe: RecipeFile,
    data: DataFolder,
    workers: Workers = 2,
    compiled: Compile = True,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Let students run their own MD and the teacher label what a committee of them is unsure of.

    Needs a section `rounds` in the recipe and the dataset of `distill sample`, which grows. Next:
    distill train, which goes on with the larger dataset.

    Example: mlff-student distill rounds plugin/mlff_student/distill/organic.yaml
    --data runs/organic
    """
    from mlff_student.distill.recipe import read_recipe
    from mlff_student.distill.rounds import run_rounds

    with reported("rounds", "", json, quiet) as records:
        for number, count in enumerate(run_rounds(read_recipe(recipe), data, workers, compiled), 1):
            console.print(f"round {number}: {count} structures labelled")
            records.append({"round": number, "structures": count})


@distill_app.command("relabel")
def relabel_command(
    dataset: Annotated[Path, typer.Argument(help="HDF5 file whose training frames are rattled.")],
    larger: Annotated[Path, typer.Option("--by", help="Checkpoint of the student that labels.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HDF5 file to write.")],
    copies: Annotated[int, typer.Option(help="Of each frame.")] = 4,
    largest_force: Annotated[float, typer.Option(help="eV/angstrom; above: left out.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of the displacements.")] = 1,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Label many more frames by a larger student, for `distill train --extra`.

    Example: mlff-student distill relabel checkpoints/data/organic.h5 --by
    checkpoints/original/model.pt -o runs/more.h5
    """
    from mlff_student.distill.relabel import relabel

    with reported("relabel", str(larger), json, quiet) as records:
        frames = relabel(
            larger, dataset, output, copies=copies, largest_force=largest_force, seed=seed
        )
        records.append({"dataset": str(output), "frames": frames})
    console.print(f"{output}: {frames} frames")


@distill_app.command("evaluate")
def evaluate_command(
    recipe: RecipeFile,
    data: DataFolder,
    model: Preset,
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint folder to write.")],
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Measure a trained student on held-out molecules; write its checkpoint, card and README.

    Example: mlff-student distill evaluate plugin/mlff_student/distill/organic.yaml
    --data runs/organic --model tiny -o my/tiny
    """
    from mlff_student.distill.evaluate import card_text, write_checkpoint
    from mlff_student.distill.recipe import read_recipe

    trained = data / model / "model.pt"
    with reported("evaluate", model, json, quiet) as records:
        card = write_checkpoint(
            read_recipe(recipe), recipe, data / "dataset.h5", trained, model, output
        )
        records.append(held_out_record(card))
    console.print(Markdown(card_text(card)))


@distill_app.command("stability")
def stability_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder with its card.")],
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")],
    molecules: Annotated[int, typer.Option(help="Held-out molecules to run.")] = 20,
    ps: Annotated[float, typer.Option(help="Length of each run, ps.")] = 10.0,
    workers: Workers = 2,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="CSV; nve.csv in the folder if not given.")
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """NVE in OpenMM of molecules the student never saw; exit status 1 when one drifts or breaks.

    Example: mlff-student distill stability checkpoints/tiny --runs runs/nve/tiny
    """
    from mlff_student.distill.stability import measure_stability

    with reported("stability", checkpoint.name, json, quiet) as records:
        rows = measure_stability(
            checkpoint / "model.pt",
            runs,
            output or checkpoint / "nve.csv",
            molecules=molecules,
            ps=ps,
            workers=workers,
        )
        records += [row._asdict() for row in rows]
    table = Table(
        "molecule", "atoms", "drift (meV/atom/ps)", "largest bond deviation (angstrom)", ""
    )
    for row in rows:
        table.add_row(
            row.name,
            str(row.atoms),
            f"{row.drift_mev_per_atom_ps:.4f} ± {row.drift_stderr_mev_per_atom_ps:.4f}",
            f"{row.bond_deviation_angstrom:.2f}",
            "passed" if row.passed else f"[red]FAILED[/] {escape(row.failure)}",
        )
    console.print(table)
    if not all(row.passed for row in rows):
        raise typer.Exit(1)


@distill_app.command("quick")
def quick_command(
    molecule: Annotated[str, typer.Option(help="Structure file or SMILES.")],
    teacher: Annotated[str, typer.Option(help="Name of the teacher.")] = "gfn2-xtb",
    preset: Annotated[str, typer.Option(help="original, tiny or ultra_tiny.")] = "tiny",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write.")] = None,
    workers: Workers = 2,
    compiled: Compile = True,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML file; mlff_student/distill/quick.yaml if not given.")
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """A student specialised on your molecule, with its validation table, within half an hour.

    Example: mlff-student distill quick --molecule examples/ethanol.xyz --preset tiny
    """
    from mlff_student.distill.evaluate import card_text
    from mlff_student.distill.quick import quick

    folder = output or Path("runs") / f"{Path(molecule).stem}-{preset}"
    with reported("quick", preset, json, quiet) as records:
        card = quick(molecule, preset, teacher, folder, workers, compiled, recipe)
        records.append(held_out_record(card))
    console.print(Markdown(card_text(card)))
    console.print(f"next: mlff-student md {molecule} --model {folder}/{preset}.pt", markup=False)
