"""The commands `mlff-student distill`."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from mlff_student.cli.common import (
    Json,
    Quiet,
    console,
    default_folder,
    quieten,
    resumable,
    shell_path,
    show,
)

distill_app = typer.Typer(
    no_args_is_help=True,
    help="""Make a student: sample structures, label them by a teacher, train and evaluate.

    Example: mlff-student distill quick --molecule examples/ethanol.xyz --preset tiny
    """,
)

RecipeFile = Annotated[
    Path, typer.Argument(help="Recipe (YAML), such as plugin/mlff_student/distill/organic.yaml.")
]
DataFolder = Annotated[
    Path, typer.Option("--data", help="Folder of dataset.h5 and of the trained models.")
]
Preset = Annotated[
    str, typer.Option("--model", help="Preset of the model, which has a section in the recipe.")
]
Workers = Annotated[int, typer.Option(help="Number of teacher processes on this machine.")]
Compile = Annotated[
    bool,
    typer.Option("--compile/--no-compile", help="Whether torch.compile fuses the training step."),
]
Records = list[dict[str, Any]]


@contextmanager
def reported(command: str, model: str, json: Path | None, quiet: bool) -> Iterator[Records]:
    """Run a long command that prints nothing if `quiet`, and write its records to `json`."""
    from mlff_student.core.results import write_results

    quieten(quiet)
    records: Records = []
    with resumable():
        yield records
    if json:
        write_results(json, f"distill {command}", model, records)


def held_out_record(card: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a card over all held-out frames."""
    errors = card["accuracy"]["held_out_molecules"]
    return {key: value for key, value in errors.items() if not isinstance(value, dict)}


@distill_app.command("sample")
def sample_command(
    recipe: RecipeFile,
    data: DataFolder,
    workers: Workers = 2,
    scheduler: Annotated[
        str,
        typer.Option(
            help="Address of a Dask scheduler (tcp://host:port) whose workers label instead."
        ),
    ] = "",
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Make the structures of a recipe, sample them and label each frame by the teacher.

    Writes DATA/dataset.h5. The same command resumes where a killed one stopped. The next commands
    are `distill check` and `distill train`.

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
    dataset: Annotated[Path, typer.Argument(help="Dataset (HDF5) that `distill sample` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for the report; DATASET.check if not given."),
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Compare a dataset with the limits of the quality gate, and answer GO or NO-GO.

    The folder receives report.md, report.json and plots. The limits and their reasons are in
    plugin/mlff_student/distill/gate.yaml. The exit status is 1 for NO-GO.

    Example: mlff-student distill check runs/organic/dataset.h5 -o runs/organic.check
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
        table = Table("check", "value", "limit", "")
        for check in report.checks:
            *cells, outcome = check.cells
            style = {"pass": "green", "FAIL": "bold red"}.get(outcome, "yellow")
            table.add_row(*cells, f"[{style}]{outcome}[/]")
        console.print(table)
        show(f"{report.verdict}\nreport: {folder}/report.md")
    if not report.passed:
        raise typer.Exit(1)


@distill_app.command("train")
def train_command(
    recipe: RecipeFile,
    data: DataFolder,
    model: Preset,
    extra: Annotated[
        list[Path] | None,
        typer.Option(help="Another dataset (HDF5) to train on as well; may be repeated."),
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint (model.pt) of the same preset to start from; if not given, weights "
            "are random."
        ),
    ] = None,
    structures: Annotated[
        int, typer.Option(help="Number of structures to train on, for a learning curve; 0: all.")
    ] = 0,
    minutes: Annotated[
        float,
        typer.Option(
            help="Time of training, minute, into which the schedule is fitted; 0: the number of "
            "steps in the recipe."
        ),
    ] = 0.0,
    compiled: Compile = True,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Train one preset on a dataset.

    Writes DATA/MODEL/model.pt, the learning curve, and a state from which the same command resumes
    after a kill. For several processes or GPUs:
    torchrun --nproc-per-node 2 -m mlff_student distill train ...

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
            minutes=minutes,
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


@distill_app.command("bundle")
def bundle_command(
    recipe: RecipeFile,
    data: DataFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle.")],
    structures: Annotated[
        int, typer.Option(help="Number of training structures, drawn at random; 0: all.")
    ] = 0,
    largest_mb: Annotated[float, typer.Option(help="Largest size of the folder, megabyte.")] = 60.0,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Pack data, recipe and code into one folder that trains students wherever torch is.

    In the folder, `python train.py --minutes 8` trains all presets of the recipe within that time,
    on a GPU if there is one, and leaves weights, learning curves and errors on the test frames.

    Example: mlff-student distill bundle plugin/mlff_student/distill/condensed.yaml
    --data runs/condensed -o runs/bundle
    """
    from mlff_student.distill.bundle import write_bundle
    from mlff_student.distill.recipe import read_recipe

    with reported("bundle", "", json, quiet) as records:
        size = write_bundle(
            read_recipe(recipe), data / "dataset.h5", output, structures, largest_mb
        )
        records.append({"bundle": str(output), "size_mb": round(size, 1)})


@distill_app.command("rounds")
def rounds_command(
    recipe: RecipeFile,
    data: DataFolder,
    student: Annotated[
        list[str] | None,
        typer.Option(
            help="Trained student of the committee (model.pt, archive or shipped name); repeat it "
            "for each member. If not given, a committee is trained by the recipe."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Number of processes on this machine, for MD and for the teacher.")
    ] = 2,
    compiled: Compile = True,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Run MD by students, and label by the teacher the frames on which the students disagree.

    The recipe needs a section `rounds`. The new frames are added to DATA/dataset.h5, which `distill
    sample` wrote; run `distill train` after it. With --student a command runs one round; train the
    students again, and repeat the command for the next. The same command resumes after a kill.

    Example: mlff-student distill rounds plugin/mlff_student/distill/condensed.yaml
    --data runs/condensed --student tiny --student original
    """
    from mlff_student.distill.recipe import read_recipe
    from mlff_student.distill.rounds import run_rounds

    with reported("rounds", "", json, quiet) as records:
        settings = read_recipe(recipe)
        rounds = run_rounds(settings, data, workers, compiled, student or ())
        for number, summary in enumerate(rounds, 1):
            console.print(
                f"round {number}: MD of {summary.simulated} structures, {summary.broken} broke, "
                f"median disagreement {summary.disagreement:.3g} eV/angstrom; {summary.frames} "
                f"frames of {summary.structures} structures labelled"
            )
            records.append(
                {
                    "round": number,
                    "simulated": summary.simulated,
                    "broken": summary.broken,
                    "disagreement_ev_per_angstrom": summary.disagreement,
                    "structures": summary.structures,
                    "frames": summary.frames,
                }
            )
        if settings.rounds and len(rounds) < settings.rounds.count:
            show(
                f"next: mlff-student distill train ... --data {shell_path(data)} for each student, "
                f"then the same command for round {len(rounds) + 1}"
            )


@distill_app.command("relabel")
def relabel_command(
    dataset: Annotated[
        Path, typer.Argument(help="Dataset (HDF5) whose training frames are displaced.")
    ],
    larger: Annotated[
        Path, typer.Option("--by", help="Checkpoint (model.pt) of the student that labels.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Dataset (HDF5) to write.")],
    copies: Annotated[int, typer.Option(help="Number of displaced copies of each frame.")] = 4,
    largest_force: Annotated[
        float,
        typer.Option(help="Largest force component of a frame that is kept, eV/angstrom."),
    ] = 30.0,
    seed: Annotated[int, typer.Option(help="Random seed of the displacements.")] = 1,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Label displaced copies of the training frames by a larger student.

    The written dataset is for `distill train --extra`. The same command resumes after a kill.

    Example: mlff-student distill relabel runs/organic/dataset.h5 --by
    checkpoints/original/model.pt -o runs/more.h5
    """
    from mlff_student.distill.relabel import relabel

    with reported("relabel", str(larger), json, quiet) as records:
        frames = relabel(
            larger, dataset, output, copies=copies, largest_force=largest_force, seed=seed
        )
        records.append({"dataset": str(output), "frames": frames})
    show(f"{output}: {frames} frames")


@distill_app.command("evaluate")
def evaluate_command(
    recipe: RecipeFile,
    data: DataFolder,
    model: Preset,
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint folder to write.")],
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Measure a trained student on held-out molecules, and write its checkpoint folder.

    The folder receives model.pt, card.json (the errors and how it was trained), summary.json and
    README.md.

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
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint folder that `distill evaluate` wrote.")
    ],
    runs: Annotated[Path, typer.Option(help="Folder for the runs and the reports.")],
    molecules: Annotated[
        int | None, typer.Option(help="Number of held-out molecules; 20 if not given.")
    ] = None,
    ps: Annotated[
        float | None, typer.Option(help="Length of each run, ps; 10 if not given.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of runs at once, one core each.")] = 2,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Also write a table of the runs to this CSV file."),
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Run held-out molecules at constant energy (NVE) in OpenMM, and judge each run.

    This is `validate run` with the protocol `stability`. The folder receives the files that
    `validate run` writes. The exit status is 1 if a run does not pass.

    Example: mlff-student distill stability checkpoints/tiny --runs runs/nve/tiny
    """
    from mlff_student.core.figures import figure_of, known_figures
    from mlff_student.core.files import require_writable
    from mlff_student.validation.campaign import Campaign
    from mlff_student.validation.protocol import stability_protocol
    from mlff_student.validation.report import write_reports, write_table
    from mlff_student.validation.tasks import CampaignTarget

    if output:
        require_writable(output)
    protocol = stability_protocol(molecules=molecules, ps=ps)
    protocol = replace(protocol, command=shlex.join(["mlff-student", *sys.argv[1:]]))
    with reported("stability", checkpoint.name, json, quiet) as records:
        target = CampaignTarget((str(checkpoint / "model.pt"),), protocol.engines)
        campaign = Campaign(protocol, target, runs)
        campaign.run(workers, quiet=quiet)
        report = write_reports(campaign)
        failures: dict[str, list[str]] = {}
        for check in report.summary.failures:
            failures.setdefault(check.case, []).append(str(check))
        for case, run in report.runs.items():
            record = report.results[case]["record"]
            head = {"name": record["structure"], "smiles": run.settings.structure}
            outcome = {
                "ps": record["duration_ps"],
                "passed": case not in failures,
                "failure": "; ".join(failures.get(case, [])),
            }
            records.append(head | record | outcome)
    if output:
        write_table(output, records)
    figures = ("drift_mev_per_atom_ps", "bond_deviation_angstrom")
    titles = (f"{known_figures()[key].title} ({known_figures()[key].unit})" for key in figures)
    table = Table("molecule", "atoms", *titles, "verdict")
    for record in records:
        cells = (str(figure_of(record, key) or "-") for key in figures)
        outcome = "passed" if record["passed"] else f"[red]{escape(record['failure'])}[/]"
        table.add_row(record["name"], str(record["atoms"]), *cells, outcome)
    console.print(table)
    if not report.summary.passed:
        raise typer.Exit(1)


@distill_app.command("chemistry")
def chemistry_command(
    student: Annotated[
        str, typer.Argument(help="Shipped name, or path of a checkpoint folder or an archive.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the results and of the labels.")
    ],
    teacher: Annotated[str, typer.Option(help="Name of the teacher.")] = "so3lr",
    only: Annotated[
        str,
        typer.Option(
            help="Parts to compare, separated by commas: torsions, dimers, conformers, bonds, "
            "isomers; all if not given."
        ),
    ] = "",
    skip_md: Annotated[
        bool, typer.Option("--skip-md", help="Leave out the MD of the isomers.")
    ] = False,
    limits: Annotated[
        str,
        typer.Option(
            help="Preset whose limits apply; if not given, that of the student's number of "
            "channels."
        ),
    ] = "",
    summary: Annotated[
        bool,
        typer.Option("--summary", help="Also add the figures to summary.json of the checkpoint."),
    ] = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Compare the chemistry of a student with its teacher, and judge it.

    Rotation about 16 kinds of bond, binding of the S22 dimers, energies of conformers, curves of
    stretched bonds, and MD at 600 K of molecules that must keep their cis or trans isomer. The
    energies of the teacher stay in OUTPUT, so that the same command resumes after a kill, and other
    students are compared without a teacher. A folder in it receives chemistry.json and plots. The
    exit status is 1 if a limit of plugin/mlff_student/distill/chemistry.yaml is not kept.

    Example: mlff-student distill chemistry checkpoints/tiny --teacher gfn2-xtb -o runs/chemistry
    """
    from datetime import UTC, datetime

    from mlff_student.archive.evidence import SUMMARY, add_evidence
    from mlff_student.archive.registry import is_checkpoint, model_file
    from mlff_student.core.errors import InputError
    from mlff_student.distill.chemistry import PARTS, compare_chemistry
    from mlff_student.distill.chemistry_report import records, table, write_report

    checkpoint = model_file(student)
    if summary and (checkpoint.name != "model.pt" or not is_checkpoint(checkpoint)):
        raise InputError(
            f"--summary needs a checkpoint folder, whose {SUMMARY} it extends; {student} is none"
        )
    parts = only.split(",") if only else [p for p in PARTS if not (skip_md and p == "isomers")]
    with reported("chemistry", student, json, quiet) as results:
        report = compare_chemistry(student, teacher, output, parts, limits)
        write_report(report)
        results += records(report)
    if summary:
        command = shlex.join(["mlff-student", *sys.argv[1:]])
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        evidence = report.evidence(command, date)
        add_evidence(checkpoint.parent, checkpoint.parent.name, [evidence])
    console.print(table(report))
    if not quiet:
        show(f"results: {report.folder}")
    if not report.passed:
        raise typer.Exit(1)


@distill_app.command("quick")
def quick_command(
    molecule: Annotated[str, typer.Option(help="Structure file or SMILES string.")],
    teacher: Annotated[str, typer.Option(help="Name of the teacher.")] = "gfn2-xtb",
    preset: Annotated[
        str, typer.Option(help="Preset of the student: original, tiny or ultra_tiny.")
    ] = "tiny",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder to write; runs/MOLECULE-PRESET if not given."),
    ] = None,
    workers: Workers = 2,
    compiled: Compile = True,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Recipe (YAML); plugin/mlff_student/distill/quick.yaml if not given."),
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Make a student of one molecule, within half an hour.

    The folder receives the dataset, the checkpoint with its card, and the archive PRESET.pt for the
    engines. The same command resumes after a kill.

    Example: mlff-student distill quick --molecule examples/ethanol.xyz --preset tiny
    """
    from mlff_student.distill.evaluate import card_text
    from mlff_student.distill.quick import quick

    folder = output or default_folder(molecule, preset)
    with reported("quick", preset, json, quiet) as records:
        card = quick(molecule, preset, teacher, folder, workers, compiled, recipe)
        records.append(held_out_record(card))
    console.print(Markdown(card_text(card)))
    archive = shell_path(folder / f"{preset}.pt")
    show(f"next: mlff-student md {shlex.quote(molecule)} --model {archive}")
