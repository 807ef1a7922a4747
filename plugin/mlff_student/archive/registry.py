"""Find models: the shipped checkpoints by name, or any checkpoint or archive by path."""

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mlff_student.archive.archive import Archive, build_archive, load_archive
from mlff_student.core.errors import ArchiveError, InputError
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
    """
    card = checkpoint.with_name("card.json")
    return json.loads(card.read_text()) if card.is_file() else {}


def load_student(
    checkpoint: Path, dtype: torch.dtype = torch.float32
) -> tuple[Student, StudentConfig]:
    """Load the student of a checkpoint file, ready for inference.

    Parameters
    ----------
    checkpoint : Path
        Weights file.
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
        The file is missing, damaged, or not a checkpoint.
    """
    if not checkpoint.is_file():
        raise ArchiveError(f"there is no checkpoint {checkpoint}")
    try:
        content = torch.load(checkpoint, weights_only=True)
        config = StudentConfig.from_dict(content["config"])
        student = Student(config, dtype)
        student.load_state_dict(content["weights"])
    except Exception as error:  # unpickling a foreign file may raise anything
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArchiveError(f"{checkpoint} is not a checkpoint of a student ({detail})") from error
    return student.eval().requires_grad_(False), config


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
        Weights file; its card.json is read from the same folder.
    dtype : torch.dtype
        Precision of the weights.

    Raises
    ------
    ArchiveError
        The file is missing, damaged, or not a checkpoint.
    """
    student, config = load_student(checkpoint, dtype)
    archive = build_archive(student, config, model_name(checkpoint), read_card(checkpoint))
    return CompiledCheckpoint(student, config, archive)


def archive_of(model: str | Path, dtype: torch.dtype | None = None, device: str = "cpu") -> Archive:
    """Return the archive of a shipped model, a checkpoint or an exported archive file.

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

    Raises
    ------
    ArchiveError
        The file is missing or cannot be used.
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
    archive = load_archive(path, device)
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
    if not path.exists():
        checkpoint_path(str(model))  # raises the error that lists the shipped models
    if path.is_dir():
        path /= "model.pt"
        if not path.is_file():
            raise ArchiveError(f"the folder {model} contains no checkpoint: there is no {path}")
    return path


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint and not a TorchScript archive, which contains code.

    Parameters
    ----------
    path : Path
        File of a model.
    """
    if not zipfile.is_zipfile(path):
        return False  # `load_archive` raises the error
    with zipfile.ZipFile(path) as file:
        return not any("/code/" in name for name in file.namelist())


def model_name(checkpoint: Path) -> str:
    """Return the name of a checkpoint's model.

    Parameters
    ----------
    checkpoint : Path
        Weights file. Of `<name>/model.pt` the model's name is that of the folder, otherwise that of
        the file without its ending.
    """
    return checkpoint.parent.name if checkpoint.name == "model.pt" else checkpoint.stem
