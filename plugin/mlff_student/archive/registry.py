"""Find models: the shipped checkpoints by name, or any checkpoint or archive by path."""

import json
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlff_student.archive.archive import (
    METADATA,
    Archive,
    archive_of_members,
    has_script,
    load_archive,
    make_archive,
    require_torch,
)
from mlff_student.archive.contents import read_members, read_pickle
from mlff_student.core.errors import ArchiveError, InputError
from mlff_student.core.files import sha256
from mlff_student.core.paths import in_checkout_or_package
from mlff_student.model.architecture import (
    PRECISIONS,
    StudentConfig,
    checked_config,
    dtype_name,
)

if TYPE_CHECKING:
    import torch

    from mlff_student.model.student import Student

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


def read_model(path: Path) -> Archive:
    """Return the archive of a checkpoint or an archive file, in the precision of its weights.

    Parameters
    ----------
    path : Path
        Weights file, or an archive, none of whose code is run. If there is a card.json beside a
        weights file, it must be the card of this file.

    Raises
    ------
    ArchiveError
        The file is missing, damaged, or neither a checkpoint nor an archive; a weight is not
        finite; or the card beside it belongs to another file.
    """
    if not isfile(path):
        raise ArchiveError(f"there is no checkpoint {path}")
    try:
        members = read_members(path)
        if is_archive(members):
            return archive_of_members(path, members)
        content = read_pickle(members)
        weights = content["weights"]
        if not all(isinstance(value, np.ndarray) for value in weights.values()):
            raise ValueError("a weight is no tensor")
        config = checked_config(content["config"], weights)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        detail = f"it contains no {error}" if isinstance(error, LookupError) else error
        raise ArchiveError(
            f"{path} is not a checkpoint of a student or an archive, or is damaged ({detail})"
        ) from error
    card, actual = read_card(path), sha256(path)
    if (stated := card.get("model_sha256")) not in (None, actual):
        raise ArchiveError(
            f"{path} has the SHA-256 {actual[:12]}, the card.json beside it is that of "
            f"{str(stated)[:12]}: the file was changed or is damaged, or the card belongs to "
            "another one. Copy both files again, or run mlff-student distill evaluate again"
        )
    dtype = weights["embedding.weight"].dtype.name
    return make_archive(
        config, weights, model_name(path), card, dtype if dtype in PRECISIONS else "float32"
    )


def load_student(
    checkpoint: Path, dtype: "torch.dtype | None" = None
) -> "tuple[Student, StudentConfig]":
    """Load the student of a checkpoint file as a module of torch, ready for inference.

    Parameters
    ----------
    checkpoint : Path
        Weights file or archive; see `read_model`, also for errors.
    dtype : torch.dtype, optional
        Precision of the weights; torch.float32 if not given.

    Returns
    -------
    student : Student
        Student in evaluation mode, whose weights need no gradients.
    config : StudentConfig
        Architecture of the student.
    """
    require_torch("the student as a module of torch")
    import torch

    from mlff_student.archive.scripting import student_of

    archive = read_model(checkpoint)
    return student_of(archive, dtype or torch.float32), archive.config


def archive_of(model: str | Path, dtype: Any = None, trust: bool = False) -> Archive:
    """Return the archive of a shipped model, a checkpoint or an exported archive file.

    That of a checkpoint has no TorchScript. Nothing in the file is run.

    Parameters
    ----------
    model : str or Path
        "original", "tiny", "ultra_tiny", or the path of a checkpoint, of the folder of a model.pt,
        or of an archive file.
    dtype : str or torch.dtype, optional
        Precision of the weights. None means float32 for a checkpoint, and the stored precision for
        an exported archive; any other precision of an archive is an error.
    trust : bool
        Whether the portable backend runs the TorchScript of an archive file; see `Archive`.

    Raises
    ------
    ArchiveError
        The file is missing or cannot be used.
    InputError
        The precision is unknown, or an exported archive has another one.
    """
    wanted = None if dtype is None else dtype_name(dtype)
    if wanted not in (None, *PRECISIONS):
        raise InputError(f"dtype must be {' or '.join(PRECISIONS)}, got {wanted!r}")
    path = model_file(model)
    if is_checkpoint(path):
        return read_model(path).in_precision(wanted or "float32")
    archive = load_archive(path, trust)
    stored = archive.metadata["dtype"]
    if wanted not in (None, stored):
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
    """Return whether a file is a checkpoint and not an archive.

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
    """Return whether the members of a file are those of an archive, also of another program's.

    Parameters
    ----------
    members : dict[str, bytes]
        Members, from `read_members`.
    """
    return METADATA in members or has_script(members)


def model_name(checkpoint: Path) -> str:
    """Return the name of a checkpoint's model.

    Parameters
    ----------
    checkpoint : Path
        Weights file. Of `<name>/model.pt` the model's name is that of the folder, otherwise that of
        the file without its ending.
    """
    return checkpoint.parent.name if checkpoint.name == "model.pt" else checkpoint.stem
