"""Finding models: the shipped checkpoints by name, or any checkpoint or archive by path."""

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mlff_student.archive.archive import Archive, build_archive, load_archive
from mlff_student.core.errors import ArchiveError, InputError
from mlff_student.core.paths import in_checkout_or_package
from mlff_student.model.student import Student, StudentConfig, dtype_name

# In a source tree the checkpoints lie at the top; an installed package carries them inside.
FOLDERS = in_checkout_or_package("checkpoints", "checkpoints")


def available_models() -> dict[str, Path]:
    """Name and folder of every shipped checkpoint."""
    for folder in FOLDERS:
        models = {path.parent.name: path.parent for path in sorted(folder.glob("*/model.pt"))}
        if models:
            return models
    return {}


def checkpoint_path(model: str) -> Path:
    """Weights file of a shipped model.

    Raises
    ------
    ArchiveError
        If there is no model of that name.
    """
    models = available_models()
    if model not in models:
        raise ArchiveError(
            f"no model {model!r}; shipped are {', '.join(models) or 'none'}, "
            "or give the path of a checkpoint or an exported archive"
        )
    return models[model] / "model.pt"


def read_card(checkpoint: Path) -> dict[str, Any]:
    """The card.json beside a checkpoint; empty if there is none."""
    card = checkpoint.with_name("card.json")
    return json.loads(card.read_text()) if card.is_file() else {}


def load_student(
    checkpoint: Path, dtype: torch.dtype = torch.float32
) -> tuple[Student, StudentConfig]:
    """Student of a checkpoint file, ready for inference.

    Raises
    ------
    ArchiveError
        If the file is missing, damaged, or not a checkpoint.
    """
    if not checkpoint.is_file():
        raise ArchiveError(f"no checkpoint {checkpoint}")
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
    """A checkpoint's student, and the archive that was made of it."""

    student: Student
    config: StudentConfig
    archive: Archive


def compile_checkpoint(checkpoint: Path, dtype: torch.dtype = torch.float32) -> CompiledCheckpoint:
    """Student of a checkpoint file and its archive, with the facts of the card beside it.

    Parameters
    ----------
    checkpoint : Path
        Weights file; its card.json is read from the same folder.
    dtype : torch.dtype
        Precision of the weights.

    Raises
    ------
    ArchiveError
        If the file is missing, damaged, or not a checkpoint.
    """
    student, config = load_student(checkpoint, dtype)
    archive = build_archive(student, config, model_name(checkpoint), read_card(checkpoint))
    return CompiledCheckpoint(student, config, archive)


def archive_of(model: str | Path, dtype: torch.dtype | None = None, device: str = "cpu") -> Archive:
    """Archive of a shipped model, a checkpoint (file or folder) or an exported archive file.

    Parameters
    ----------
    model : str or Path
        "original", "tiny", "ultra_tiny" or a path; of a folder, its model.pt is taken.
    dtype : torch.dtype | None
        torch.dtype or None Of the weights where a checkpoint is compiled (None: float32); an
        exported archive has its own, and another is refused.
    device : str
        Of torch, such as "cpu" or "cuda".

    Raises
    ------
    ArchiveError
        If the file is missing or unusable.
    InputError
        If torch has no such device here, or an exported archive is of another precision.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second where torch has no CUDA
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
            f"checkpoint again with --dtype {wanted}, or give the checkpoint in its place"
        )
    return archive


def model_file(model: str | Path) -> Path:
    """File of a shipped model, a checkpoint (file or folder) or an archive, as `archive_of` takes.

    Raises
    ------
    ArchiveError
        If there is none.
    """
    path = Path(model)
    if not path.suffix and str(model) in available_models():
        return checkpoint_path(str(model))
    if not path.exists():
        checkpoint_path(str(model))  # raises the error that lists what there is
    if path.is_dir():
        path /= "model.pt"
        if not path.is_file():
            raise ArchiveError(f"the folder {model} holds no checkpoint: there is no {path}")
    return path


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint rather than a TorchScript archive, which holds code."""
    if not zipfile.is_zipfile(path):
        return False  # load_archive says what is wrong with it
    with zipfile.ZipFile(path) as file:
        return not any("/code/" in name for name in file.namelist())


def model_name(checkpoint: Path) -> str:
    """Name of the model in a checkpoint: that of its folder for `<name>/model.pt`."""
    return checkpoint.parent.name if checkpoint.name == "model.pt" else checkpoint.stem
