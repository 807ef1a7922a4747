"""Generated parts of the documentation: mkdocs calls these functions while it builds the site.

A page holds a line `<!-- generated: NAME -->`; the function NAME of this file writes its text.
"""

import ast
import json
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "plugin" / "mlff_student"
PLACE = re.compile(r"<!-- generated: (\w+) -->")
WORDS = {"str": "text", "int": "whole number", "float": "number", "Path": "path", "bool": "flag"}
MOVED = {
    "CONTRIBUTING.md": "developer/contributing.md",
    "CHANGELOG.md": "developer/changelog.md",
}
MODELS = ("original", "tiny", "ultra_tiny")
COLUMNS = {
    ("structures", "name"): "name",
    ("structures", "identity"): "what may be in one split only, such as the canonical SMILES",
    ("structures", "kind"): "class of the molecule, or kind of the structure",
    ("structures", "split"): "`train`, `validation` or `test`",
    ("structures", "failure"): "why some frames are missing; empty if none is",
    (
        "structures",
        "frames",
    ): "number of frames",
    ("structures", "attempted"): "frames that the teacher was asked for",
    ("frames", "atoms"): "number of atoms",
    ("frames", "method"): "how the frame was sampled",
    ("frames", "energy"): "eV",
    ("frames", "temperature"): "kelvin; NaN where there was no thermostat",
    ("frames", "cell"): "lattice vectors as rows, angstrom",
    ("frames", "pbc"): "whether the cell repeats along each vector",
    ("frames", "stress"): "eV/angstrom³, xx yy zz yz xz xy; NaN where there is none",
    ("atoms", "atomic_number"): "atomic number",
    ("atoms", "position"): "angstrom",
    ("atoms", "force"): "eV/angstrom",
}
LAYERS = {
    "core": "Errors, atomic writes, settings, results, thresholds.",
    "model": "The network, the repulsion and the neighbour search, in PyTorch.",
    "archive": "The file of a model, the compiled kernels behind it, export, the shipped models.",
    "structures": "Structures and trajectories: reading, checking, packing.",
    "teachers": "Teachers by name, and labels from files.",
    "engines": "Molecular dynamics in ASE, OpenMM and LAMMPS through one protocol.",
    "analysis": "Measurement of finished runs.",
    "reporting": "Figures, thresholds, the verdict, plots and pages.",
    "distill": "From a teacher to a student.",
    "validation": "Protocols of runs, and the verdict on a model.",
    "benchmark": "Measurement of speed.",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files of the repository."""
    pages = {
        "index.md": (ROOT / "README.md").read_text(),
        "developer/contributing.md": (ROOT / "CONTRIBUTING.md").read_text(),
        "developer/changelog.md": (ROOT / "CHANGELOG.md").read_text(),
    }
    pages = {page: _links(text, page) for page, text in pages.items()}
    for layer, purpose in LAYERS.items():
        pages[f"api/{layer}.md"] = _api(f"mlff_student.{layer}", PACKAGE / layer, purpose)
    pages["api/openmm_integration.md"] = _api(
        "openmm_integration", ROOT / "openmm_integration", "A student as a force of OpenMM."
    )
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the places of generated text."""
    return PLACE.sub(lambda match: GENERATORS[match[1]](), markdown)


def _links(text: str, page: str) -> str:
    """Links between files of the repository as links between pages; the rest as plain text."""
    up = "../" * page.count("/")

    def link(match: re.Match[str]) -> str:
        label, target = match[1], match[2]
        if target.startswith(("http", "#")):
            return match[0]
        if target.startswith("docs/pages/"):
            return f"{label}({up}{target.removeprefix('docs/pages/')})"
        if target in MOVED:
            return f"{label}({up}{MOVED[target]})"
        return f"`{target}`"

    return re.sub(r"(!?\[[^\]]*\])\(([^)]+)\)", link, text)


def _api(package: str, folder: Path, purpose: str) -> str:
    """Reference page of a package: every module that has a docstring."""
    lines = [f"# `{package}`", "", purpose, ""]
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[-1] == "__init__":
            continue
        name = ".".join((package, *parts))
        lines += [f"## {'.'.join(parts)}", "", f"::: {name}", ""]
        lines += [
            "    options:",
            "      show_root_heading: false",
            "      show_root_toc_entry: false",
            "",
        ]
    return "\n".join(lines)


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    cells = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in cells)


def _cell(value: Any) -> str:
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|").strip()


def _card(model: str) -> dict[str, Any]:
    return json.loads((ROOT / "checkpoints" / model / "card.json").read_text())


def models() -> str:
    """Accuracy of the shipped students, from their cards."""
    rows = []
    for name in MODELS:
        card = _card(name)
        held_out = card["accuracy"]["held_out_molecules"]
        rows.append(
            (
                f"`{name}`",
                f"{card['parameters']:,}",
                f"{held_out['force_rmse_ev_per_angstrom']:.3f}",
                f"{held_out['force_mae_ev_per_angstrom']:.3f}",
                f"{held_out['force_r2']:.4f}",
                f"{held_out['force_angle_deg']:.1f}",
                f"{1e3 * held_out['energy_rmse_ev_per_atom']:.1f}",
            )
        )
    head = ("model", "parameters", "force RMSE (eV/angstrom)", "force MAE (eV/angstrom)", "R²")
    return _table((*head, "angle (degrees)", "energy RMSE (meV/atom)"), rows)


def errors_by_group() -> str:
    """Force RMSE and angle of the shipped students by temperature, element, size and class."""
    held_out = [_card(name)["accuracy"]["held_out_molecules"] for name in MODELS]
    rows = []
    for kind in ("by_temperature_K", "by_element", "by_size", "by_class", "complexes"):
        for group in held_out[0][kind]:
            label = f"{group} K" if kind == "by_temperature_K" else group.replace("_", " ")
            errors = [accuracy[kind][group] for accuracy in held_out]
            cells = [
                f"{error['force_rmse_ev_per_angstrom']:.3f}, {error['force_angle_deg']:.1f}°"
                for error in errors
            ]
            rows.append((label, f"{errors[0]['atoms']:,}", *cells))
    return _table(("group", "atoms", *(f"`{name}`" for name in MODELS)), rows)


def evidence() -> str:
    """What was measured of the shipped students, and the command that measures it again."""
    rows = [
        (f"`{name}`", entry["what"], len(entry["figures"]), entry["date"], f"`{entry['command']}`")
        for name in MODELS
        for entry in json.loads((ROOT / "checkpoints" / name / "summary.json").read_text())[
            "evidence"
        ]
    ]
    return _table(("model", "what was measured", "figures", "date", "command"), rows)


def thresholds() -> str:
    """The table of thresholds, with the source of each."""
    entries = yaml.safe_load((PACKAGE / "core" / "thresholds.yaml").read_text())
    rows = []
    for name, entry in entries.items():
        bound = {"most": "at most ", "least": "at least "}.get(entry.get("bound", ""), "")
        rules = [f"ensembles: {', '.join(entry['ensembles'])}."] if "ensembles" in entry else []
        if "errors_to_fail" in entry:
            rules.append(f"Fails {entry['errors_to_fail']} standard errors beyond the limit.")
        text = " ".join([entry["source"], *rules])
        rows.append((f"`{name}`", f"{bound}{entry['value']:g}", entry["unit"], text))
    return _table(("figure", "limit", "unit", "why"), rows)


def energy_in_c() -> str:
    """The example in C."""
    return f"```c\n{(ROOT / 'examples' / 'energy.c').read_text()}```"


def liquids() -> str:
    """Liquids whose density is known."""
    entries = yaml.safe_load((PACKAGE / "validation" / "liquids.yaml").read_text())
    rows = [
        (name, f"`{entry['smiles']}`", entry["density_g_per_cm3"], entry["source"])
        for name, entry in entries.items()
    ]
    return _table(("liquid", "SMILES", "density (g/cm³)", "source"), rows)


def teachers() -> str:
    """Teachers by name, from the registry."""
    from mlff_student.teachers import TEACHERS

    rows = [
        (
            f"`{name}`",
            teacher.description,
            f"`pip install {teacher.package}`",
            teacher.licence,
            teacher.source,
        )
        for name, teacher in TEACHERS.items()
    ]
    return _table(("name", "what it is", "needs", "licence of the weights", "source"), rows)


def dataset_columns() -> str:
    """Arrays of the dataset, with the types that the code gives them."""
    from mlff_student.distill.dataset import TABLES

    rows = []
    for table, columns in TABLES.items():
        for name in columns.names:
            base, shape = str(columns[name].base).lstrip("|"), columns[name].shape
            rows.append((f"`{table}/{name}`", f"`{base}`", f"`{shape}`", COLUMNS[table, name]))
    return _table(("column", "type", "shape of a row", "what it holds"), rows)


def report_schema() -> str:
    """Keys of the validation report, from its JSON schema."""
    schema = json.loads((PACKAGE / "validation" / "report.schema.json").read_text())
    return _table(("key", "type", "what it holds"), list(_schema_rows(schema, "")))


def _schema_rows(schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, entry in schema.get("properties", {}).items():
        kind = entry.get("type", "")
        kind = " or ".join(kind) if isinstance(kind, list) else kind
        if "enum" in entry or "const" in entry:
            kind = ", ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
        yield f"`{prefix}{name}`", kind, entry.get("description", "")
        yield from _schema_rows(entry, f"{prefix}{name}.")
        inner = entry.get("items", entry.get("additionalProperties"))
        if isinstance(inner, dict):
            yield from _schema_rows(
                inner, f"{prefix}{name}[]." if "items" in entry else f"{prefix}{name}.*."
            )


def exit_codes() -> str:
    """Exit status of each error of the project, from the classes."""
    tree = ast.parse((PACKAGE / "core" / "errors.py").read_text())
    rows, inherited = [], {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        status = inherited.get(node.bases[0].id if isinstance(node.bases[0], ast.Name) else "", 2)
        for line in node.body:
            if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "exit_status":
                status = ast.literal_eval(line.value)
        inherited[node.name] = status
        rows.append((f"`{node.name}`", status, ast.get_docstring(node) or ""))
    return _table(("error", "exit status", "when"), rows)


def command_line() -> str:
    """Every command with its arguments and options, from the typer application."""
    from mlff_student.cli import app

    return "\n".join(_command(typer.main.get_command(app), ["mlff-student"]))


def _command(command: Any, words: list[str]) -> Iterator[str]:
    group = getattr(command, "commands", None)
    yield f"\n{'#' * min(len(words) + 1, 4)} {' '.join(words)}\n"
    yield _help(command.help or "")
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    if not group:
        named = " ".join(one.name if one.required else f"[{one.name}]" for one in arguments)
        yield f"\n```text\n{' '.join([*words, '[OPTIONS]', named]).strip()}\n```\n"
    if arguments and not group:
        rows = [(f"`{one.name}`", getattr(one, "help", "") or "") for one in arguments]
        yield "\n" + _table(("argument", "what it is"), rows) + "\n"
    if options and not group:
        yield (
            "\n"
            + _table(("option", "value", "default", "what it does"), list(map(_option, options)))
            + "\n"
        )
    for name, inner in (group or {}).items():
        yield from _command(inner, [*words, name])


def _help(text: str) -> str:
    """Help text as paragraphs, and its examples as code."""
    parts = re.split(r"\n\s*\n", text.replace("\b", "").strip())
    written = []
    for part in parts:
        part = " ".join(part.split())
        about, example, commands = part.partition("Example")
        if example and not about.strip():
            head, _, commands = commands.partition(":")
            head = f"Example{head}:" if head.strip() else ""
            commands = re.sub(r" Example[^:]*: ", "\n", commands.strip())
            written.append((f"{head}\n\n" if head else "") + f"```bash\n{commands}\n```")
        else:
            written.append(part)
    return "\n\n".join(written)


def _option(option: Any) -> tuple[str, str, str, str]:
    names = [*option.opts, *option.secondary_opts]
    kind = _kind(option)
    default = "required" if option.required else getattr(option.default, "value", option.default)
    if kind == "flag":
        default = option.opts[0] if default and option.secondary_opts else ""
    shown = "" if default is None or callable(default) or default in ([], ()) else str(default)
    shown = f"`{shown}`" if shown and shown != "required" else shown
    return ", ".join(f"`{name}`" for name in names), kind, shown, option.help or ""


def _kind(option: Any) -> str:
    """Type of an option's value, in the words of a user."""
    if option.is_flag:
        return "flag"
    if hasattr(option, "type_descriptor"):
        kind = option.type_descriptor.annotation
    else:  # typer before 0.26
        kind = getattr(option.type, "choices", option.type.name)
    if isinstance(kind, str):
        return kind
    if not isinstance(kind, type):
        kinds = [getattr(part, "__name__", str(part)) for part in getattr(kind, "__args__", ())]
        words = [WORDS.get(name, name) for name in kinds if name != "NoneType"]
        return ", ".join(words) if words else ", ".join(map(str, kind))
    if issubclass(kind, Enum):
        return ", ".join(str(choice.value) for choice in kind)
    return WORDS.get(kind.__name__, kind.__name__)


GENERATORS = {
    function.__name__: function
    for function in (
        models,
        errors_by_group,
        evidence,
        thresholds,
        energy_in_c,
        liquids,
        teachers,
        dataset_columns,
        report_schema,
        exit_codes,
        command_line,
    )
}
