"""The archive: one model in the bytes of a file, with its weights, facts and TorchScript."""

import hashlib
import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import fields
from functools import cache, cached_property, lru_cache
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlff_student.archive.contents import (
    members_of,
    read_json,
    read_members,
    read_pickle,
    read_safetensors,
    tensors_of,
    write_members,
    write_safetensors,
)
from mlff_student.core.errors import ArchiveError, MissingDependencyError
from mlff_student.core.version import __version__
from mlff_student.model.architecture import (
    PRECISIONS,
    Arrays,
    StudentConfig,
    checked_config,
    derived_buffers,
    parameters_of,
    weight_shapes,
)

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

FORMAT = "mlff-student-archive"
FORMAT_VERSION = 3
METADATA = "extra/metadata.json"
WEIGHTS = "extra/weights.safetensors"
STUDENT = "student."  # begins the name of each array
UNITS = {"length": "angstrom", "energy": "eV"}
CONFIG = tuple(field.name for field in fields(StudentConfig))  # keys of the metadata
REQUIRED: dict[str, Any] = {
    "name": str,
    "teacher": str,
    "dtype": str,
    "parameters": int,
    "weights_sha256": str,
    "self_check": dict | None,
    "accuracy": dict | None,
    "domain": dict | None,
    "units": dict,
}
FROM_CARD = ("dataset_sha256", "recipe", "accuracy", "domain")

# Distorted formamide, the molecule of the self-check. It has four elements and is not planar.
SELF_CHECK_NUMBERS = [6, 8, 7, 1, 1, 1]
SELF_CHECK_POSITIONS = [
    [0.12, 0.38, 0.05],
    [1.21, 0.24, -0.11],
    [-0.94, -0.56, 0.08],
    [-0.42, 1.46, 0.13],
    [-0.64, -1.50, -0.02],
    [-1.90, -0.33, 0.21],
]


class Archive:
    """A model, read from the bytes of an archive and checked.

    The weights and the metadata are read; the TorchScript in the file, which may contain any code,
    is not looked at.

    Parameters
    ----------
    content : bytes
        Content of a file of format 3.
    origin : str
        Name of the file, for messages.
    trust : bool
        Whether `module` is the TorchScript of the file, which may do anything that this process may
        do, instead of the one that this version compiles for the weights. Use this only for files
        from people whom you trust.

    Attributes
    ----------
    content : bytes
        Content of the file.
    metadata : dict[str, Any]
        Facts of the model.
    config : StudentConfig
        Architecture of the student.
    tensors : Arrays
        Weights and derived buffers by their names in the module, "student.…".

    Raises
    ------
    ArchiveError
        The content is damaged or not an archive, has another format version, or its weights are not
        finite or do not have the stored hash.
    """

    def __init__(self, content: bytes, origin: str = "the archive", trust: bool = False) -> None:
        self.content, self.origin, self.trust = content, origin, trust
        try:
            members = members_of(content)
        except ValueError as error:
            raise ArchiveError(_not_an_archive(origin, error)) from error
        self.metadata = _read_metadata(origin, members, FORMAT_VERSION)
        if self.metadata["self_check"] is None and has_script(members):
            raise ArchiveError(f"{origin}: the self-check is missing; export the model again")
        try:
            self.tensors = read_safetensors(members[WEIGHTS])
            self.config = _check_weights(self.metadata, self.tensors)
        except (ValueError, LookupError) as error:
            raise ArchiveError(
                f"{origin} was changed or is damaged ({error}); export it again, or copy it again"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.content, self.origin, self.trust)

    @cached_property
    def module(self) -> "torch.jit.ScriptModule":
        """TorchScript with the methods of `ArchiveModule`, on the CPU.

        Raises
        ------
        ArchiveError
            The self-check molecule has another energy or other forces.
        MissingDependencyError
            torch is not installed.
        """
        return self.compile("cpu")

    def compile(self, device: str) -> "torch.jit.ScriptModule":
        """Return a new TorchScript module on a device of torch; see `module` for errors."""
        require_torch("the portable backend")
        from mlff_student.archive.scripting import compile_archive

        return compile_archive(self, device)

    def weights(self) -> Arrays:
        """Return the arrays by their names in the `state_dict` of a student."""
        return {name.removeprefix(STUDENT): array for name, array in self.tensors.items()}

    def in_precision(self, dtype: str) -> "Archive":
        """Return the archive of this student in a precision, "float32" or "float64"."""
        if dtype == self.metadata["dtype"]:
            return self
        metadata = self.metadata | {"dtype": dtype}
        return pack_archive(metadata, student_arrays(self.config, self.weights(), dtype))


@lru_cache(maxsize=4)  # a pool of processes unpickles the same calculator for every task
def _unpickled(content: bytes, origin: str, trust: bool) -> Archive:
    return Archive(content, origin, trust)


def require_torch(what: str) -> None:
    """Raise an error if torch is not installed.

    Parameters
    ----------
    what : str
        What needs torch, for the message.

    Raises
    ------
    MissingDependencyError
        torch cannot be imported.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        from mlff_student.core.installation import install_command

        raise MissingDependencyError(
            f"{what} needs torch, which cannot be imported ({error}): {install_command('torch')}"
        ) from error


# --- Writing --------------------------------------------------------------------------------------


def weights_hash(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of all weights and buffers, in the order of their names.

    Parameters
    ----------
    tensors : Mapping[str, np.ndarray]
        Arrays by their names in the module of an archive.
    """
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(key.encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def student_arrays(config: StudentConfig, weights: Arrays, dtype: str) -> Arrays:
    """Return the arrays of an archive: weights in a precision, and derived buffers.

    Parameters
    ----------
    config : StudentConfig
        Architecture of the student.
    weights : Arrays
        Arrays by their names in the `state_dict` of a student; others are left out.
    dtype : str
        Precision, "float32" or "float64"; that of reference energies is always float64.
    """
    trained = {
        name: weights[name].astype("float64" if name == "references" else dtype, copy=False)
        for name in weight_shapes(config)
    }
    arrays = trained | derived_buffers(config, dtype)
    return {STUDENT + name: array for name, array in arrays.items()}


def make_archive(
    config: StudentConfig, weights: Arrays, name: str, card: dict[str, Any], dtype: str
) -> Archive:
    """Return the archive of a student without TorchScript, which the native kernels evaluate.

    Parameters
    ----------
    config : StudentConfig
        Architecture of the student.
    weights : Arrays
        Arrays by their names in the `state_dict` of a student.
    name : str
        Name of the model.
    card : dict[str, Any]
        Content of the checkpoint's card.json. Teacher, hash of the dataset, recipe, measured
        accuracy, domain and self-check are copied from it.
    dtype : str
        Precision of the network, "float32" or "float64".
    """
    card = json.loads(json.dumps(card), parse_constant=lambda _: None)  # NaN is not JSON
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": name,
        "parameters": parameters_of(config),
        **config.as_dict(),
        "units": UNITS,
        "dtype": dtype,
        "teacher": str(card.get("teacher", "unknown")),
        **{key: card.get(key) for key in FROM_CARD},
        "self_check": card.get("self_check"),
        "versions": {"mlff_student": __version__, "python": platform.python_version()},
    }
    return pack_archive(metadata, student_arrays(config, weights, dtype))


def pack_archive(
    metadata: dict[str, Any], tensors: Arrays, script: Mapping[str, bytes] | None = None
) -> Archive:
    """Return the archive of metadata and arrays.

    Parameters
    ----------
    metadata : dict[str, Any]
        Facts of the model; the hash is computed anew.
    tensors : Arrays
        Arrays by their names in the module.
    script : Mapping[str, bytes], optional
        Members of a file of TorchScript.
    """
    metadata = metadata | {"weights_sha256": weights_hash(tensors)}
    # A byte in the name of a file that is not UTF-8 becomes an escape sequence of JSON.
    text = json.dumps(metadata, ensure_ascii=False).encode(errors="backslashreplace")
    own = {METADATA: text, WEIGHTS: write_safetensors(tensors)}
    return Archive(write_members({**(script or {}), **own}), f"model {metadata['name']}")


def save_archive(archive: Archive, path: Path) -> None:
    """Write an archive.

    Parameters
    ----------
    archive : Archive
        Archive to write.
    path : Path
        File to write.
    """
    path.write_bytes(archive.content)


# --- Reading --------------------------------------------------------------------------------------


def load_archive(path: Path, trust: bool = False) -> Archive:
    """Read an archive and check it.

    Parameters
    ----------
    path : Path
        Archive file of format 3, or of format 2, whose weights and facts are taken over; a warning
        then says how to write the file again.
    trust : bool
        As for `Archive`.

    Raises
    ------
    ArchiveError
        The file is missing, or cannot be used; see `Archive`.
    """
    path = Path(path)
    if not isfile(path):
        raise ArchiveError(
            f"there is no file {path}; write one with: mlff-student export --model original"
        )
    try:
        members = read_members(path)
    except ValueError as error:
        raise ArchiveError(_not_an_archive(str(path), error)) from error
    return archive_of_members(path, members, trust)


def archive_of_members(path: Path, members: dict[str, bytes], trust: bool = False) -> Archive:
    """Return the archive of the members of a file, as `load_archive` does.

    Parameters
    ----------
    path : Path
        Archive file.
    members : dict[str, bytes]
        What is in the file.
    trust : bool
        As for `Archive`.
    """
    try:
        version = read_json(members[METADATA]).get("format_version")
    except (KeyError, ValueError):
        version = None
    if version != 2:
        return Archive(path.read_bytes(), str(path), trust)
    metadata = _read_metadata(str(path), members, 2)
    if trust:
        raise ArchiveError(
            f"{path} has format 2, of which only the weights are read; {_again(path)}"
        )
    try:
        tensors = tensors_of(read_pickle(members))
        _check_weights(metadata, tensors)
    except ValueError as error:
        raise ArchiveError(f"{path} was changed or is damaged ({error}); copy it again") from error
    _warn_of_format_2(path)
    return pack_archive(metadata | {"format_version": FORMAT_VERSION}, tensors)


@cache
def _warn_of_format_2(path: Path) -> None:
    logger.warning("%s has archive format 2; %s", path, _again(path))


def _again(path: Path) -> str:
    return f"write it again: mlff-student export --checkpoint {path} -o NEW.pt"


def _not_an_archive(origin: str, error: Exception) -> str:
    return (
        f"{origin} is not an mlff-student archive or is damaged ({error}); export it again, or "
        "copy it again"
    )


def has_script(members: Mapping[str, bytes]) -> bool:
    """Return whether the members of a file contain TorchScript.

    Parameters
    ----------
    members : Mapping[str, bytes]
        Members, from `read_members`.
    """
    return any(name.startswith("code/") for name in members)


def _read_metadata(origin: str, members: dict[str, bytes], version: int) -> dict[str, Any]:
    """Return the metadata of an archive of a format version, after checking them by themselves."""
    try:
        metadata = read_json(members[METADATA])
        if metadata.get("format") != FORMAT:
            raise ValueError(f"the format is {metadata.get('format')!r:.80}")
    except KeyError as error:
        raise ArchiveError(_not_an_archive(origin, ValueError(f"no {METADATA}"))) from error
    except ValueError as error:
        raise ArchiveError(_not_an_archive(origin, error)) from error
    if metadata.get("format_version") != version:
        raise ArchiveError(
            f"{origin}: expected {FORMAT} version {version}, found version "
            f"{metadata.get('format_version')!r:.80}; export it again, or install the version of "
            "mlff-student that wrote it"
        )
    if missing := {*REQUIRED, *CONFIG} - metadata.keys():
        raise ArchiveError(
            f"{origin}: {' and '.join(sorted(missing))} is missing in the metadata; export it again"
        )
    wrong = [key for key, kinds in REQUIRED.items() if not isinstance(metadata[key], kinds)]
    wrong += ["units"] * (metadata["units"] != UNITS)
    wrong += ["dtype"] * (metadata["dtype"] not in PRECISIONS)
    wrong += ["self_check"] * (not _is_self_check(metadata["self_check"]))
    if wrong:
        raise ArchiveError(
            f"{origin}: the metadata are damaged ({wrong[0]} is {str(metadata[wrong[0]])[:80]}); "
            "export it again"
        )
    return metadata


def _is_self_check(check: Any) -> bool:
    return check is None or (
        isinstance(check, dict)
        and check.get("atomic_numbers") == SELF_CHECK_NUMBERS
        and check.get("positions") == SELF_CHECK_POSITIONS
        and isinstance(check.get("energy"), float)
        and _same_shape(check.get("forces"), SELF_CHECK_POSITIONS)
    )


def _same_shape(value: Any, template: Any) -> bool:
    """Return whether a value consists of lists and numbers as the template does."""
    if not isinstance(template, list):
        return isinstance(value, float | int)
    return (
        isinstance(value, list)
        and len(value) == len(template)
        and all(map(_same_shape, value, template))
    )


def _check_weights(metadata: dict[str, Any], tensors: Arrays) -> StudentConfig:
    """Return the architecture of the arrays of an archive, after comparing them with its metadata.

    Raises
    ------
    ValueError
        They contradict each other.
    """
    if (digest := weights_hash(tensors)) != metadata["weights_sha256"]:
        raise ValueError(
            f"the weights have the hash {digest[:12]}, the metadata have "
            f"{metadata['weights_sha256'][:12]}"
        )
    weights = {name.removeprefix(STUDENT): array for name, array in tensors.items()}
    config = checked_config({key: metadata[key] for key in CONFIG}, weights)
    if metadata["parameters"] != parameters_of(config):
        raise ValueError(f"the student has {parameters_of(config)} parameters")
    expected = student_arrays(config, weights, metadata["dtype"])
    if strange := tensors.keys() ^ expected.keys():
        raise ValueError(f"the array {min(strange)!r:.80} is missing or unknown")
    for name, array in expected.items():
        stored = tensors[name]
        if stored.dtype != array.dtype or stored.shape != array.shape:
            raise ValueError(f"{name} has the type {stored.dtype} and the shape {stored.shape}")
        if not np.allclose(stored, array, rtol=1e-5, atol=0.0):
            raise ValueError(f"{name} does not follow from the metadata")
    return config
