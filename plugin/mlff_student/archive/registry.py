"""Find models: the shipped checkpoints by name, or any checkpoint or archive by path."""

import json
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mlff_student.archive.archive import (
    Archive,
    build_archive,
    check_reference_numbers,
    load_archive,
    read_archive,
    read_student,
)
from mlff_student.archive.contents import read_members, read_pickle
from mlff_student.archive.restore import restore_student
from mlff_student.core.errors import ArchiveError, InputError
from mlff_student.core.files import sha256
from mlff_student.core.paths import in_checkout_or_package
from mlff_student.model.student import Student, StudentConfig, dtype_name

# In a checkout the checkpoints are at the top; an installed package contains them.
FOLDERS = in_checkout_or_package("checkpoints", "checkpoints")


def available_models() -> dict[str, Path]:
    """Return the name and folder of every shipped checkpoint."""
    for folder in FOLDERS:
        models = {path.parent.name: path.parent for path in sorted(folder.glob("*/model.pt"))}
        if models:
            return models
    return {}


def checkpoint_path(model: str) -> Path:
    """Return the weights file of a shipped model.

    Parameters
    ----------
    model : str
        Name of the model.

    Raises
    ------
    ArchiveError
        There is no shipped model of that name.
    """
    models = available_models()
    if model not in models:
        raise ArchiveError(
            f"there is no model {model!r}; shipped are {', '.join(models) or 'none'}. Give one of "
            "these, or the path of a checkpoint or an exported archive"
        )
    return models[model] / "model.pt"


def read_card(checkpoint: Path) -> dict[str, Any]:
    """Return the content of the card.json beside a checkpoint; empty if there is no such file.

    Parameters
    ----------
    checkpoint : Path
        Weights file.

    Raises
    ------
    ArchiveError
        The card cannot be read or is damaged.
    """
    card = checkpoint.with_name("card.json")
    if not card.is_file():
        return {}
    try:
        content = json.loads(card.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{card} is damaged or cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ArchiveError(f"{card} is not a card: it contains no JSON object")
    return content


def load_student(
    checkpoint: Path, dtype: torch.dtype = torch.float32
) -> tuple[Student, StudentConfig]:
    """Load the student of a checkpoint file, ready for inference.

    Of an archive the weights are read, and none of its code is run.

    Parameters
    ----------
    checkpoint : Path
        Weights file, or an archive. If there is a card.json beside a weights file, it must be the
        card of this file.
    dtype : torch.dtype
        Precision of the weights.

    Returns
    -------
    student : Student
        Student in evaluation mode, whose weights need no gradients.
    config : StudentConfig
        Architecture of the student.

    Raises
    ------
    ArchiveError
        The file is missing, damaged, or not a checkpoint; a weight is not finite; or the card
        beside it belongs to another file.
    """
    if not isfile(checkpoint):
        raise ArchiveError(f"there is no checkpoint {checkpoint}")
    try:
        members = read_members(checkpoint)
        if is_archive(members):
            return read_student(checkpoint, read_archive(checkpoint), dtype)
        content = read_pickle(members)
        restored = restore_student(content["config"], content["weights"], dtype)
    except (ValueError, TypeError, LookupError) as error:
        detail = f"it contains no {error}" if isinstance(error, LookupError) else error
        raise ArchiveError(
            f"{checkpoint} is not a checkpoint of a student, or is damaged ({detail})"
        ) from error
    stated, actual = read_card(checkpoint).get("model_sha256"), sha256(checkpoint)
    if stated not in (None, actual):
        raise ArchiveError(
            f"{checkpoint} has the SHA-256 {actual[:12]}, the card.json beside it is that of "
            f"{str(stated)[:12]}: the file was changed or is damaged, or the card belongs to "
            "another one. Copy both files again, or run mlff-student distill evaluate again"
        )
    return restored


class CompiledCheckpoint(NamedTuple):
    """A checkpoint's student, its architecture, and the archive that was made of it."""

    student: Student
    config: StudentConfig
    archive: Archive


def compile_checkpoint(checkpoint: Path, dtype: torch.dtype = torch.float32) -> CompiledCheckpoint:
    """Load the student of a checkpoint file and compile its archive, with the facts of its card.

    Parameters
    ----------
    checkpoint : Path
        Weights file, whose card.json is read from the same folder; or an archive, whose metadata
        have the facts and whose code is not run.
    dtype : torch.dtype
        Precision of the weights.

    Raises
    ------
    ArchiveError
        The file is missing, damaged, or not a checkpoint; or the code of this version computes
        other numbers than those stored in the archive.
    """
    student, config = load_student(checkpoint, dtype)
    if is_checkpoint(checkpoint):
        archive = build_archive(student, config, model_name(checkpoint), read_card(checkpoint))
    else:
        facts = read_archive(checkpoint).metadata
        archive = build_archive(student, config, facts["name"], facts)
        check_reference_numbers(checkpoint, archive.module, facts["self_check"])
    return CompiledCheckpoint(student, config, archive)


def archive_of(
    model: str | Path,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    trust: bool = False,
) -> Archive:
    """Return the archive of a shipped model, a checkpoint or an exported archive file.

    Nothing in the file is run, unless `trust` is true; see `load_archive`.

    Parameters
    ----------
    model : str or Path
        "original", "tiny", "ultra_tiny", or the path of a checkpoint, of the folder of a model.pt,
        or of an archive file.
    dtype : torch.dtype or None
        Precision of the weights. None means float32 for a checkpoint, and the stored precision for
        an exported archive; any other precision of an archive is an error.
    device : str
        Device of torch, for example "cpu" or "cuda".
    trust : bool
        Whether to run code in an archive that this version does not write. Use this only for files
        from people whom you trust.

    Raises
    ------
    ArchiveError
        The file is missing or cannot be used, or it is an archive with other code than this version
        writes.
    InputError
        torch has no such device on this machine, or an exported archive has another precision.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError if torch has no CUDA
        raise InputError(
            f"torch cannot use the device {device!r}: {str(error).splitlines()[0]}"
        ) from error
    path = model_file(model)
    if is_checkpoint(path):
        archive = compile_checkpoint(path, dtype or torch.float32).archive
        return Archive(archive.module.to(device), archive.metadata)
    archive = load_archive(path, device, trust)
    stored = archive.metadata["dtype"]
    if dtype is not None and dtype_name(dtype) != stored:
        wanted = dtype_name(dtype)
        raise InputError(
            f"{model} is an archive that was exported in {stored}, not {wanted}; export its "
            f"checkpoint again with --dtype {wanted}, or give the checkpoint itself"
        )
    return archive


def model_file(model: str | Path) -> Path:
    """Return the file of a model.

    Parameters
    ----------
    model : str or Path
        Name or path of a model, as for `archive_of`.

    Raises
    ------
    ArchiveError
        There is no such file, or the folder contains no model.pt.
    """
    path = Path(model)
    if not path.suffix and str(model) in available_models():
        return checkpoint_path(str(model))
    if not exists(path):  # the method of Path raises for a name that is too long
        checkpoint_path(str(model))  # raises the error that lists the shipped models
    if isdir(path):
        path /= "model.pt"
        if not isfile(path):
            raise ArchiveError(f"the folder {model} contains no checkpoint: there is no {path}")
    return path


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint and not a TorchScript archive, which contains code.

    Parameters
    ----------
    path : Path
        File of a model.
    """
    try:
        return not is_archive(read_members(path))
    except ValueError:
        return False  # `load_archive` raises the error


def is_archive(members: dict[str, bytes]) -> bool:
    """Return whether the members of a file are those of a TorchScript archive.

    Parameters
    ----------
    members : dict[str, bytes]
        Members, from `read_members`.
    """
    return any(name.startswith("code/") for name in members)


def model_name(checkpoint: Path) -> str:
    """Return the name of a checkpoint's model.

    Parameters
    ----------
    checkpoint : Path
        Weights file. Of `<name>/model.pt` the model's name is that of the folder, otherwise that of
        the file without its ending.
    """
    return checkpoint.parent.name if checkpoint.name == "model.pt" else checkpoint.stem
