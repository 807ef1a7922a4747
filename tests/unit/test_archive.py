"""Archives: what any client can rely on, files that are refused, and export."""

import hashlib
import json
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor

from mlff_student.archive import export as export_module
from mlff_student.archive.archive import (
    FORMAT,
    FORMAT_VERSION,
    METADATA,
    WEIGHTS,
    Archive,
    load_archive,
    save_archive,
    weights_hash,
)
from mlff_student.archive.backends import evaluator, unavailable
from mlff_student.archive.contents import (
    members_of,
    read_members,
    read_pickle,
    read_safetensors,
    tensors_of,
    write_members,
    write_safetensors,
)
from mlff_student.archive.export import (
    Agreement,
    compare_with_eager,
    eager_energy_and_forces,
    export,
)
from mlff_student.archive.registry import archive_of, available_models, load_student, read_model
from mlff_student.archive.scripting import (
    ArchiveModule,
    check_reference_numbers,
    script,
    script_members,
    student_of,
    with_script,
)
from mlff_student.core.errors import ArchiveError, InputError
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.model.neighbours import neighbour_edges
from mlff_student.model.student import PRESETS, Student, StudentConfig

RandomStudent = Callable[..., Student]
Call = tuple[Tensor, Tensor, Tensor, Tensor]
BACKENDS = ["portable"] if unavailable() else ["portable", "native"]
SYSTEMS = ["water", "ethanol", "molecule32", "water_box", "triclinic"]
# Two orders of summation in float32 of forces of a few eV/angstrom: 1e-6 measured.
FLOAT32_ENERGY, FLOAT32_FORCE = 1e-5, 2e-5


def call_of(atoms: Atoms, dtype: torch.dtype = torch.float64) -> Call:
    return (
        torch.tensor(atoms.positions, dtype=dtype),
        torch.tensor(atoms.numbers),
        torch.tensor(atoms.cell.array, dtype=dtype),
        torch.tensor(atoms.pbc),
    )


@pytest.fixture
def archive(tiny_archive: Path) -> Archive:
    """A copy of its own for each test."""
    return load_archive(tiny_archive)


@pytest.fixture
def archive64(tiny_archive64: Path) -> Archive:
    return load_archive(tiny_archive64)


# --- Contract -----------------------------------------------------------------------------------


def test_metadata_has_all_that_a_client_needs(
    archive: Archive, tiny_checkpoint: Path, random_student: RandomStudent
):
    metadata, config = archive.metadata, PRESETS["tiny"]
    card = json.loads(tiny_checkpoint.with_name("card.json").read_text())
    student = random_student("tiny")
    assert metadata["format"] == FORMAT
    assert metadata["format_version"] == FORMAT_VERSION
    assert metadata["name"] == "random_tiny"
    assert metadata["parameters"] == sum(weight.numel() for weight in student.parameters())
    assert tuple(metadata["elements"]) == config.elements
    assert metadata["cutoff"] == 5.0
    assert metadata["layers"] == config.layers
    assert metadata["channels"] == config.channels
    assert metadata["radial_functions"] == config.radial_functions
    assert metadata["units"] == {"length": "angstrom", "energy": "eV"}
    assert metadata["dtype"] == "float32"
    for key in ("teacher", "dataset_sha256", "recipe", "accuracy", "domain"):
        assert metadata[key] == card[key]
    assert set(metadata["self_check"]) == {"atomic_numbers", "positions", "energy", "forces"}
    assert metadata["versions"]["torch"] == torch.__version__
    assert {"mlff_student", "python"} <= set(metadata["versions"])


def test_facts_are_attributes_of_the_module_for_clients_without_a_json_parser(archive: Archive):
    module, metadata = archive.module, archive.metadata
    assert module.format_version == FORMAT_VERSION
    assert module.name == metadata["name"]
    assert module.cutoff == metadata["cutoff"]
    assert module.elements == metadata["elements"]
    assert module.parameter_count == metadata["parameters"]
    assert module.dtype_name == metadata["dtype"]
    assert module.teacher == metadata["teacher"]


def test_archive_is_plain_torch(tiny_archive: Path, structures: dict[str, Atoms]):
    """No custom operator, so that it runs wherever libtorch does."""
    call = call_of(structures["ethanol"])
    for same, expected in zip(
        torch.jit.load(tiny_archive)(*call), load_archive(tiny_archive).module(*call), strict=True
    ):
        assert torch.equal(same, expected)
    with zipfile.ZipFile(tiny_archive) as file:
        code = "".join(file.read(n).decode() for n in file.namelist() if n.endswith(".py"))
    assert "def from_edges" in code
    assert "ops.mlff_student" not in code


def test_weights_are_those_of_the_torchscript(tiny_archive: Path):
    """Also the layout: the numbers are where a reader of safetensors looks for them."""
    members = read_members(tiny_archive)
    assert {METADATA, WEIGHTS, "data.pkl", "constants.pkl"} <= members.keys()
    stored = torch.jit.load(tiny_archive).state_dict()
    arrays = read_safetensors(members[WEIGHTS])
    assert arrays.keys() == stored.keys()
    content = members[WEIGHTS]
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    for name, value in stored.items():
        assert np.array_equal(arrays[name], value.numpy())
        first, last = header[name]["data_offsets"]
        assert content[begin + first : begin + last] == value.numpy().tobytes()
        assert (begin + first) % value.element_size() == 0
    assert weights_hash(arrays) == json.loads(members[METADATA])["weights_sha256"]


def test_saved_and_loaded_archive_computes_the_same_bits(
    archive: Archive, structures: dict[str, Atoms], tmp_path: Path
):
    save_archive(archive, tmp_path / "again.pt")
    again = load_archive(tmp_path / "again.pt")
    assert again.metadata == archive.metadata
    for name in SYSTEMS:
        for before, after in zip(
            archive.module(*call_of(structures[name])),
            again.module(*call_of(structures[name])),
            strict=True,
        ):
            assert torch.equal(before, after), name


@pytest.mark.parametrize("name", SYSTEMS)
def test_archive_equals_the_student(
    name: str, archive64: Archive, random_student: RandomStudent, structures: dict[str, Atoms]
):
    """The reference uses vesin's neighbours and autograd's forces."""
    atoms = structures[name]
    expected, expected_forces = eager_energy_and_forces(
        random_student("tiny"), PRESETS["tiny"], atoms
    )
    energy, forces, _ = archive64.module(*call_of(atoms))
    assert float(energy) == pytest.approx(expected, abs=1e-10)
    np.testing.assert_allclose(forces.numpy(), expected_forces, atol=1e-10)


@pytest.mark.parametrize("name", SYSTEMS)
def test_from_edges_equals_forward(name: str, archive64: Archive, structures: dict[str, Atoms]):
    positions, numbers, cell, pbc = call_of(structures[name])
    energy, forces, virial = archive64.module(positions, numbers, cell, pbc)
    vectors, index = neighbour_edges(positions, cell, pbc, archive64.metadata["cutoff"])
    shuffle = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    vectors, index = vectors[shuffle], index[:, shuffle]  # a client may use any order
    energies, gradient = archive64.module.from_edges(vectors, index, numbers, len(numbers))
    gathered = torch.zeros_like(forces)
    gathered = gathered.index_add(0, index[0], gradient).index_add(0, index[1], -gradient)
    tight = {"rtol": 1e-11, "atol": 1e-11}
    assert energies.shape == (len(numbers),)
    torch.testing.assert_close(energies.sum(), energy, **tight)
    torch.testing.assert_close(gathered, forces, **tight)
    torch.testing.assert_close(-torch.einsum("ea,eb->ab", vectors, gradient), virial, **tight)
    per_atom, _, _ = archive64.module.evaluate(positions, numbers, cell, pbc)
    torch.testing.assert_close(per_atom, energies, **tight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference_mode", "frozen"])
def test_gradients_are_inside(
    mode: str, dtype: torch.dtype, archive: Archive, structures: dict[str, Atoms]
):
    """Results are detached, contiguous and float64 in every mode of autograd."""
    module = torch.jit.freeze(archive.module.eval()) if mode == "frozen" else archive.module
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    for name in SYSTEMS:
        expected = archive.module(*call_of(structures[name]))
        with context.get(mode, torch.enable_grad)():
            for _ in range(3):  # torch compiles after the first calls
                energy, forces, virial = module(*call_of(structures[name], dtype))
        for result in (energy, forces, virial):
            assert result.dtype == torch.float64
            assert result.is_contiguous()
            assert not result.requires_grad
        assert energy.shape == ()
        assert forces.shape == (len(structures[name]), 3)
        assert virial.shape == (3, 3)
        # Positions narrowed to float32 move by 1e-6 angstrom.
        tolerance = 1.0 if dtype == torch.float64 else 30.0
        assert abs(float(energy - expected[0])) < FLOAT32_ENERGY * tolerance
        assert float((forces - expected[1]).abs().max()) < FLOAT32_FORCE * tolerance


def test_forces_are_contiguous_in_both_precisions(
    archive: Archive, archive64: Archive, structures: dict[str, Atoms]
):
    """OpenMM's TorchForce reads the buffer of a forces tensor without looking at its strides."""
    for each in (archive, archive64):
        for name in SYSTEMS:
            assert each.module(*call_of(structures[name]))[1].stride() == (3, 1)


@pytest.mark.parametrize("name", ["ethanol", "triclinic"])
def test_forces_are_minus_the_gradient(name: str, archive64: Archive, structures: dict[str, Atoms]):
    positions, numbers, cell, pbc = call_of(structures[name])
    _, forces, _ = archive64.module(positions, numbers, cell, pbc)
    step = 1e-4
    for atom, axis in [(0, 0), (1, 2), (4, 1)]:
        energies = []
        for sign in (1.0, -1.0):
            moved = positions.clone()
            moved[atom, axis] += sign * step
            energies.append(float(archive64.module(moved, numbers, cell, pbc)[0]))
        slope = (energies[0] - energies[1]) / (2 * step)
        # The error is the step squared times a third derivative of about 100 eV/angstrom^3.
        assert -slope == pytest.approx(float(forces[atom, axis]), abs=1e-5)


def test_float32_archive_agrees_with_float64(
    archive: Archive, archive64: Archive, structures: dict[str, Atoms]
):
    for name in SYSTEMS:
        single, double = (each.module(*call_of(structures[name])) for each in (archive, archive64))
        assert abs(float(single[0] - double[0])) < len(structures[name]) * 1e-5
        assert float((single[1] - double[1]).abs().max()) < 1e-4


def test_a_structure_without_atoms_has_no_energy(archive: Archive):
    energy, forces, virial = archive.module(*call_of(Atoms()))
    assert float(energy) == 0.0
    assert forces.shape == (0, 3)
    assert not virial.any()


# --- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [3, 0, -1, -118, 118, 119, 120])
def test_unknown_element_is_named(number: int, archive: Archive, structures: dict[str, Atoms]):
    positions, numbers, cell, pbc = call_of(structures["water"])
    numbers[1] = number
    with pytest.raises(torch.jit.Error) as caught:
        archive.module(positions, numbers, cell, pbc)
    message = f"atomic number {number} is unknown to this student; it knows H, C, N, O, F, P, S, Cl"
    assert message in str(caught.value)
    edges = torch.zeros(0, 3).double(), torch.zeros(2, 0).long()
    with pytest.raises(torch.jit.Error, match=f"atomic number {number} is unknown"):
        archive.module.from_edges(*edges, numbers, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_positions_that_are_not_finite_raise(
    value: float, archive: Archive, structures: dict[str, Atoms]
):
    positions, numbers, cell, pbc = call_of(structures["water_box"])
    positions[5, 2] = value
    with pytest.raises(torch.jit.Error, match="a position is NaN or infinite"):
        archive.module(positions, numbers, cell, pbc)


def test_coincident_atoms_raise_and_close_ones_repel(
    archive: Archive, structures: dict[str, Atoms]
):
    positions, numbers, cell, pbc = call_of(structures["ethanol"])
    positions[1] = positions[0] + torch.tensor([0.05, 0.0, 0.0])
    energy, forces, _ = archive.module(positions, numbers, cell, pbc)
    assert energy > 100.0  # eV, so that a minimiser rejects this step
    assert forces[1, 0] > 100.0
    assert forces[0, 0] < -100.0
    positions[1] = positions[0]
    with pytest.raises(torch.jit.Error, match="an energy is not finite"):
        archive.module(positions, numbers, cell, pbc)


def test_positions_and_atomic_numbers_of_different_length_raise(
    archive: Archive, structures: dict[str, Atoms]
):
    positions, numbers, cell, pbc = call_of(structures["ethanol"])
    with pytest.raises(torch.jit.Error, match="8 positions, but 9 atomic numbers"):
        archive.module(positions[:8], numbers, cell, pbc)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_cell_that_is_not_finite_raises(
    value: float, archive: Archive, structures: dict[str, Atoms]
):
    """Without the error no atom would have a neighbour, and all forces would be zero."""
    positions, numbers, cell, pbc = call_of(structures["water_box"])
    cell[1, 1] = value
    with pytest.raises((torch.jit.Error, RuntimeError)):
        archive.module(positions, numbers, cell, pbc)


# --- Refused files ------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    """Text of the error that loading gives."""
    with pytest.raises(ArchiveError) as caught:
        load_archive(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_missing_file(tmp_path: Path):
    assert "mlff-student export --model" in refusal(tmp_path / "nothing.pt")


@pytest.mark.parametrize("part", [0.0, 1e-5, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_truncated_file(part: float, tiny_archive: Path, tmp_path: Path):
    content = tiny_archive.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: int(part * len(content))])
    message = refusal(path)
    assert "damaged" in message
    assert "export it again" in message
    with pytest.raises(ArchiveError):
        archive_of(path)


def test_damaged_bytes_are_refused(tiny_archive: Path, tmp_path: Path):
    """Every member has a checksum."""
    content, path = tiny_archive.read_bytes(), tmp_path / "flipped.pt"
    with zipfile.ZipFile(tiny_archive) as file:
        entries = file.infolist()
    for entry in entries:
        header = content[entry.header_offset : entry.header_offset + 30]
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))  # name and extra
        for bit in range(10 if "extra" in entry.filename else 1):
            damaged = bytearray(content)
            damaged[start + bit * entry.compress_size // 10] ^= 1 << bit % 7
            path.write_bytes(damaged)
            assert "damaged" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"mlff-student-archive", os.urandom(5000)])
def test_a_file_of_another_format(content: bytes, tmp_path: Path):
    path = tmp_path / "foreign.pt"
    path.write_bytes(content)
    assert "is not an mlff-student archive" in refusal(path)


class Foreign(torch.nn.Module):
    def forward(self, positions: Tensor) -> Tensor:
        return positions.sum()


def test_torchscript_of_another_program(archive: Archive, tmp_path: Path):
    path = tmp_path / "foreign.pt"
    torch.jit.save(torch.jit.script(Foreign()), str(path))
    assert "is not an mlff-student archive" in refusal(path)
    # The metadata of an archive do not make it one.
    path.write_bytes(write_members(read_members(path) | {METADATA: json.dumps(archive.metadata)}))
    assert WEIGHTS in refusal(path)


def test_checkpoint_is_not_an_archive(tiny_checkpoint: Path):
    assert "is not an mlff-student archive" in refusal(tiny_checkpoint)


def changed(archive: Archive, path: Path, members: dict[str, bytes | str]) -> Path:
    """Write an archive with other members."""
    path.write_bytes(write_members(members_of(archive.content) | members))
    return path


def with_metadata(archive: Archive, change: dict, path: Path) -> Path:
    return changed(archive, path, {METADATA: json.dumps(archive.metadata | change)})


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", "null", "7", '{"format": "another"}', f'{{"format": "{FORMAT}", "a": NaN}}'],
)
def test_metadata_of_another_format(text: str, archive: Archive, tmp_path: Path):
    message = refusal(changed(archive, tmp_path / "foreign.pt", {METADATA: text}))
    assert "is not an mlff-student archive" in message


@pytest.mark.parametrize("key", ["weights_sha256", "self_check"])
def test_metadata_without_the_data_of_the_checks(key: str, archive: Archive, tmp_path: Path):
    metadata = {name: value for name, value in archive.metadata.items() if name != key}
    refusal(changed(archive, tmp_path / "less.pt", {METADATA: json.dumps(metadata)}))


def test_another_format_version(archive: Archive, tmp_path: Path):
    later = {"format_version": FORMAT_VERSION + 1}
    message = refusal(with_metadata(archive, later, tmp_path / "later.pt"))
    assert f"expected {FORMAT} version {FORMAT_VERSION}" in message
    assert f"found version {FORMAT_VERSION + 1}" in message
    assert "export it again" in message


@pytest.mark.parametrize(
    "altered",
    ["readout_in.bias", "blocks.1.mix.weight", "references", "basis.frequencies",
     "repulsion.charges"],
)  # fmt: skip
def test_altered_weights(altered: str, archive: Archive, tmp_path: Path):
    arrays = {name: array.copy() for name, array in archive.tensors.items()}
    arrays[f"student.{altered}"].flat[-1] += 1e-3
    members = {WEIGHTS: write_safetensors(arrays)}
    message = refusal(changed(archive, tmp_path / "altered.pt", members))
    assert "hash" in message
    assert archive.metadata["weights_sha256"][:12] in message
    assert "export it again" in message


def test_altered_self_check_numbers(archive: Archive, tmp_path: Path):
    """Each backend compares the numbers when it is made."""
    path = tmp_path / "altered.pt"
    for key, change in [("energy", 2e-4), ("forces", 2e-3)]:
        metadata = deepcopy(archive.metadata)
        if key == "energy":
            metadata["self_check"]["energy"] += change
        else:
            metadata["self_check"]["forces"][3][1] += change
        altered = load_archive(with_metadata(archive, metadata, path))
        for backend in BACKENDS:
            with pytest.raises(ArchiveError, match="self-check"):
                evaluator(altered, backend)


def test_self_check_may_be_missing_only_without_torchscript(
    archive: Archive, tiny_checkpoint: Path, tmp_path: Path
):
    assert "self-check is missing" in refusal(
        with_metadata(archive, {"self_check": None}, tmp_path / "altered.pt")
    )
    native_only = archive_of(tiny_checkpoint)
    assert native_only.metadata["self_check"] is None
    save_archive(native_only, tmp_path / "native.pt")
    assert load_archive(tmp_path / "native.pt").metadata == native_only.metadata


@pytest.mark.parametrize("model", available_models())
def test_cards_have_the_numbers_of_the_self_check(model: str, tmp_path: Path):
    """So that a checkpoint is checked too, where there is no torch."""
    checkpoint = available_models()[model] / "model.pt"
    student, config = load_student(checkpoint, torch.float64)
    check = json.loads(checkpoint.with_name("card.json").read_text())["self_check"]
    assert archive_of(model).metadata["self_check"] == check
    check_reference_numbers(model, ArchiveModule(student, config, "", ""), check)
    copied = shutil.copy(checkpoint, tmp_path)
    wrong = {"self_check": check | {"energy": check["energy"] + 1e-3}}
    (tmp_path / "card.json").write_text(json.dumps(wrong))
    for backend in BACKENDS:
        with pytest.raises(ArchiveError, match="self-check"):
            evaluator(archive_of(copied), backend)


@pytest.mark.parametrize(
    "change",
    [
        {"cutoff": 6.0},
        {"cutoff": float("nan")},
        {"cutoff": "5"},
        {"lowest": -2.0},
        {"shortest": 0.9},
        {"repulsion_reach": 0.8},
        {"elements": ["C", "H", "N", "O", "F", "P", "S", "Cl", "Br"]},
        {"elements": ["H", "C", "N", "O"]},
        {"dtype": "float64"},
        {"dtype": "float16"},
        {"teacher": None},
        {"parameters": 3},
        {"units": {"length": "nm", "energy": "kJ/mol"}},
        {"domain": "liquids"},
        {"channels": 16 * 10**12},
        {"radial_functions": 10**12},
        {"layers": 10**9},
        {"layers": 3},
    ],
)
def test_metadata_that_contradict_the_weights(change: dict, archive: Archive, tmp_path: Path):
    """Backends would otherwise compute different energies, or take memory without bound."""
    message = refusal(with_metadata(archive, change, tmp_path / "changed.pt"))
    assert "export it again" in message


def test_another_molecule_in_the_self_check(archive: Archive, tmp_path: Path):
    """Positions are compared and not evaluated: 1e300 would keep a neighbour search busy."""
    check = archive.metadata["self_check"] | {"positions": [[1e300, 0.0, 0.0]] * 6}
    path = with_metadata(archive, {"self_check": check}, tmp_path / "changed.pt")
    assert "the metadata are damaged (self_check" in refusal(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}, "of the type 'F16'"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "has 8 bytes"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "is damaged"),
        ({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, "is damaged"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "ends behind"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "overlap or leave gaps"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "overlap or leave gaps"),
        ({k: {"dtype": "F64", "shape": [], "data_offsets": [0, 8]} for k in "ab"}, "overlap"),
        ({"a": {"dtype": "F64", "shape": [], "data_offsets": [0, 8], "b": 1}}, "is no array"),
        ({"__metadata__": {}}, "is no array"),
        ({}, "leave gaps"),
        ('{"a": 1, "a": 2}', "two members of the same name"),
        ("[" * 100000, "not|nested"),
    ],
)
def test_damaged_weights(header: dict | str, message: str):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    with pytest.raises(ValueError, match=message):
        read_safetensors(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match="claims"):
        read_safetensors((10**9).to_bytes(8, "little") + text)


def as_format_2(archive: Archive, path: Path) -> Path:
    """Write the file that the version before this one wrote: without the weights' member."""
    members = members_of(archive.content)
    metadata = json.dumps(archive.metadata | {"format_version": 2})
    del members[WEIGHTS]
    path.write_bytes(write_members(members | {METADATA: metadata.encode()}))
    return path


def test_format_2_is_read_with_one_warning(
    archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = as_format_2(archive, tmp_path / "old.pt")
    for model in (load_archive(path), archive_of(path), read_model(path)):
        assert model.metadata == archive.metadata
        assert Archive(model.content).metadata == archive.metadata
        assert all(np.array_equal(model.tensors[k], v) for k, v in archive.tensors.items())
    assert caplog.text.count("archive format 2") == 1
    assert f"mlff-student export --checkpoint {path} -o NEW.pt" in caplog.text
    export(path, tmp_path / "new.pt")
    new = load_archive(tmp_path / "new.pt")
    assert new.metadata == archive.metadata
    assert new.content == archive.content
    for backend in BACKENDS:
        energies = [
            evaluator(each, backend).evaluate([[0, 0, 0], [1, 0, 0]], [8, 1]).energies
            for each in (load_archive(path), archive)
        ]
        np.testing.assert_array_equal(*energies)


# --- Code of a file -----------------------------------------------------------------------------


class Stranger(torch.nn.Module):
    """Writes a file when it is loaded, and again in every call."""

    def __init__(self, victim: str):
        super().__init__()
        self.victim = victim
        self.training = False

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.victim, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.victim, self.training = state[0], state[1]
        numbers = torch.from_file(self.victim, True, 4)
        assert numbers.shape[0] == 4

    def forward(self, positions: Tensor, numbers: Tensor, cell: Tensor, pbc: Tensor) -> Tensor:
        return positions.sum() + torch.from_file(self.victim, True, 4).sum()


def with_code(source: Path, change: Callable[[str], str], path: Path) -> Path:
    """Copy an archive with another code of its outermost class."""
    members = read_members(source)
    for name, text in members.items():
        if b"class ArchiveModule" in text and name.endswith(".py"):
            members[name] = change(text.decode()).encode()
            assert members[name] != text
    path.write_bytes(write_members(members))
    return path


def strange_archives(tiny_archive: Path, folder: Path) -> dict[str, Path]:
    """Archives whose code writes the file `victim` while they are loaded, or when they are used."""
    victim = folder / "victim"
    write = f'torch.from_file("{victim}", True, 4)'
    whole = folder / "whole.pt"
    torch.jit.save(torch.jit.script(Stranger(str(victim))), str(whole))
    own = {name: data for name, data in read_members(tiny_archive).items() if "extra/" in name}
    whole.write_bytes(write_members(read_members(whole) | own))
    return {
        "__setstate__": whole,
        "forward": with_code(
            tiny_archive,
            lambda text: text.replace("torch.sum(energies)", f"torch.sum({write})"),
            folder / "forward.pt",
        ),
        "constant": with_code(
            tiny_archive,
            lambda text: text.replace(
                "\n  name : str", f"\n  x : Final[Tensor] = {write}\n  name : str"
            ),
            folder / "constant.pt",
        ),
        "default": with_code(
            tiny_archive,
            lambda text: f"{text}def f(x: Tensor={write}) -> Tensor:\n  return x\n",
            folder / "default.pt",
        ),
    }


def test_code_in_a_file_does_not_run(tiny_archive: Path, tmp_path: Path):
    """Neither when it is loaded, nor with any backend; the weights give the same energies."""
    atoms = molecule("H2O")
    expected = StudentForceFieldCalculator(tiny_archive).get_potential_energy(atoms)
    for kind, path in strange_archives(tiny_archive, tmp_path).items():
        for load in (load_archive, archive_of):
            assert load(path).metadata == load_archive(tiny_archive).metadata
        for backend in BACKENDS:
            calculator = StudentForceFieldCalculator(path, backend=backend)
            energy = pickle.loads(pickle.dumps(calculator)).get_potential_energy(atoms)
            assert energy == pytest.approx(expected, abs=1e-5), kind
        export(path, tmp_path / "new.pt")
        assert load_archive(tmp_path / "new.pt").metadata == load_archive(tiny_archive).metadata
        assert not (tmp_path / "victim").exists(), kind


def test_code_runs_if_the_user_trusts_it(tiny_archive: Path, tmp_path: Path):
    path = with_code(
        tiny_archive,
        lambda text: text.replace("torch.sum(energies)", "torch.mul(torch.sum(energies), 1.5)"),
        tmp_path / "other.pt",
    )
    with pytest.raises(ArchiveError, match="self-check"):
        assert load_archive(path, trust=True).module
    members = read_members(path)
    atoms, metadata = molecule("H2O"), json.loads(members[METADATA])
    metadata["self_check"]["energy"] *= 1.5
    path.write_bytes(write_members(members | {METADATA: json.dumps(metadata)}))
    expected = load_archive(tiny_archive).module(*call_of(atoms))[0]
    for archive in (load_archive(path, trust=True), archive_of(path, trust=True)):
        assert float(archive.module(*call_of(atoms))[0]) == 1.5 * float(expected)
    assert StudentForceFieldCalculator(path, trust=True).backend == "portable"


def test_trusted_code_of_other_weights_is_refused(archive: Archive, tmp_path: Path):
    other = members_of(with_script(archive_of("tiny")).content)
    own = {name: members_of(archive.content)[name] for name in (METADATA, WEIGHTS)}
    path = changed(archive, tmp_path / "mixed.pt", other | own)
    with pytest.raises(ArchiveError, match="TorchScript has other weights"):
        assert load_archive(path, trust=True).module


# torch numbers classes of the same name in the order in which a process compiled them.
MANGLE = re.compile(r"[./]___torch_mangle_\d+")
DEFINITION = re.compile(r"^(?=class |def )", re.MULTILINE)
VARIABLE = re.compile(r"(?<![\w.])([A-Za-z_]\w*?)\d+\b")
# Sizes of a layer, which torch writes in any order. Other values could be calls, which torch runs.
FINAL = re.compile(
    r"^  \w+ : Final\[(int|float|bool|NoneType)\] = (-?[\d.]+(e[+-]?\d+)?|True|False|None)\n",
    re.MULTILINE,
)
# SHA-256 of torch.nn.functional.embedding, in which releases of torch differ.
CODE_OF_TORCH = {
    "ba4667428a2516d0e1f177ef8df9bd25e5c207f6e4752480e105cc65258506aa",  # torch 2.9
    "6ad510446c16e01f037fb99995d930e5a8219758fcf75a9edf05f4228d8da721",  # torch 2.13, 2.14
}


def definitions(layers: int) -> set[str]:
    """Return the classes and functions in the code of a student in the form of `script.cpp`:
    without what differs between two exports, which are the numbers that torch gives to classes of
    the same name, the numbers of local variables, and the sizes of a layer.
    """
    config = StudentConfig(channels=16, layers=layers, radial_functions=1)
    members = script_members(script(ArchiveModule(Student(config).eval(), config, "", "")))
    blocks = set()
    for name, text in members.items():
        if name.startswith("code/"):
            for block in filter(None, DEFINITION.split(FINAL.sub("", text.decode()))):
                numbers: dict[str, int] = {}
                numbered = VARIABLE.sub(
                    lambda match, numbers=numbers: (
                        f"{match[1]}#{numbers.setdefault(match[0], len(numbers))}"
                    ),
                    block,
                )
                blocks.add(MANGLE.sub("", f"{name}\n{numbered}"))
    return blocks


def test_list_of_known_code_is_that_of_this_version():
    """The portable backend of LAMMPS runs the code of a file if it is in the list."""
    header = Path(__file__).parents[2] / "plugin" / "csrc" / "known_code.h"
    texts = set().union(*(definitions(layers) for layers in range(1, 9)))
    hashes = {hashlib.sha256(text.encode()).hexdigest() for text in texts} | CODE_OF_TORCH
    right = "".join(f'    "{digest}",\n' for digest in sorted(hashes))
    assert right in header.read_text(), f"the code changed; write into {header}:\n{right}"


# --- Models by name and path --------------------------------------------------------------------


def test_archive_of_a_checkpoint_equals_the_exported_one(
    tiny_checkpoint: Path, tiny_archive: Path, structures: dict[str, Atoms]
):
    compiled, loaded = archive_of(tiny_checkpoint), archive_of(tiny_archive)
    differ = {"self_check": None, "versions": None}
    assert compiled.metadata | differ == loaded.metadata | differ
    for actual, expected in zip(
        compiled.module(*call_of(structures["ethanol"])),
        loaded.module(*call_of(structures["ethanol"])),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=FLOAT32_FORCE)


def test_unknown_model_name_lists_the_known_ones():
    with pytest.raises(ArchiveError, match=r"no model 'orignal'; shipped are .* or the path of"):
        archive_of("orignal")


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", os.urandom(3000)])
def test_foreign_checkpoints_are_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=str(path)):
        archive_of(path)
    with pytest.raises(ArchiveError, match="is not a checkpoint of a student"):
        load_student(path)


def test_incomplete_checkpoints_are_refused(tiny_checkpoint: Path, tmp_path: Path):
    content = torch.load(tiny_checkpoint, weights_only=True)
    path = tmp_path / "model.pt"
    for change in [
        {"weights": {}},
        {"config": content["config"] | {"channels": 128}},
        {"config": content["config"] | {"depth": 1}},
    ]:
        torch.save(content | change, path)
        with pytest.raises(ArchiveError, match="is not a checkpoint of a student"):
            load_student(path)


def test_weights_that_are_not_finite(tiny_checkpoint: Path, tmp_path: Path):
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["weights"]["blocks.1.mix.weight"][3, 5] = float("nan")
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(ArchiveError, match=r"1 of the 4096 numbers of blocks.1.mix.weight are not"):
        archive_of(path)


@pytest.mark.parametrize("valid_checksum", [False, True])
def test_a_damaged_checkpoint_is_not_exported(valid_checksum: bool, tmp_path: Path):
    """2,000 zeroed bytes, once in the file and once before the checksums were computed."""
    shipped = available_models()["ultra_tiny"]
    copy = tmp_path / "ultra_tiny"
    shutil.copytree(shipped, copy)
    path = copy / "model.pt"
    load_student(path)
    if valid_checksum:
        content = torch.load(path, weights_only=True)
        content["weights"]["blocks.0.message.weight"].flatten()[1000:1500] = 0.0
        torch.save(content, path)
    else:
        content = bytearray(path.read_bytes())
        content[40_000:42_000] = bytes(2000)
        path.write_bytes(content)
    words = "card.json beside it is that of" if valid_checksum else "Bad CRC-32"
    for use in (load_student, archive_of, lambda path: export(path, tmp_path / "out.pt")):
        with pytest.raises(ArchiveError, match=words):
            use(path)
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("text", ["{", "[]", "\x00", "7"])
def test_a_damaged_card(text: str, tiny_checkpoint: Path, tmp_path: Path):
    shutil.copy(tiny_checkpoint, tmp_path)
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ArchiveError, match=r"card\.json is"):
        archive_of(tmp_path)


def test_sizes_that_a_checkpoint_only_claims(tiny_checkpoint: Path, tmp_path: Path):
    """No memory is taken for them."""
    content = torch.load(tiny_checkpoint, weights_only=True)
    for key in ("channels", "layers", "radial_functions"):
        torch.save(content | {"config": content["config"] | {key: 16 * 10**9}}, tmp_path / "m.pt")
        with pytest.raises(ArchiveError, match=f"{key} is 16000000000, but the weights have"):
            load_student(tmp_path / "m.pt")


def test_a_pickle_that_grows_without_bound_is_refused(tiny_archive: Path, tmp_path: Path):
    """Every object contains the one before twice, so the last has the first 2**40 times."""
    begin = (
        b"c__torch__.module\nClass\n)\x81}("  # a new object, and the beginning of its attributes
    )
    pickle = b"N"
    for level in range(40):
        again = b"h" + bytes([level])
        pickle = (
            begin + b"\x8c\x01a" + pickle + b"q" + bytes([level]) + b"\x8c\x01b" + again + b"ub"
        )
    path = as_format_2(load_archive(tiny_archive), tmp_path / "model.pt")
    members = read_members(path) | {"data.pkl": b"\x80\x02" + pickle + b"."}
    with pytest.raises(ValueError, match="more than 100000 objects"):
        tensors_of(read_pickle(members))
    path.write_bytes(write_members(members))
    with pytest.raises(ArchiveError):
        archive_of(path)


def test_mutated_files_are_refused_or_harmless(
    tiny_archive: Path, tiny_checkpoint: Path, tmp_path: Path
):
    """Members, directory and metadata; with valid checksums, which reach the readers behind."""
    rng, path, outcomes = random.Random(17), tmp_path / "model.pt", Counter()
    for source in (tiny_archive, tiny_checkpoint):
        content, members = source.read_bytes(), read_members(source)
        directory = content.rfind(b"PK\x01\x02", 0, content.rfind(b"data.pkl"))
        short = [name for name, data in members.items() if 0 < len(data) < 20_000]
        for _ in range(150):
            mutant = bytearray(content)
            begin = rng.choice([0, directory])
            for _ in range(rng.randint(1, 6)):
                mutant[rng.randrange(begin, len(mutant))] = rng.choice([0, 255, rng.randrange(256)])
            name = rng.choice(short)
            part = bytearray(members[name])
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(part))
                part[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(1, 4))
            for data in (bytes(mutant), write_members(members | {name: bytes(part)})):
                path.write_bytes(data)
                try:
                    load_student(path)
                    outcomes["read"] += 1
                except ArchiveError:
                    outcomes["refused"] += 1
    assert outcomes["refused"] > 300, outcomes


# --- Export -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_export_writes_a_verified_archive(dtype: str, tiny_checkpoint: Path, tmp_path: Path):
    output = tmp_path / "model.pt"
    agreements = export(tiny_checkpoint, output, dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert load_archive(output).metadata["dtype"] == dtype
    assert {agreement.dtype for agreement in agreements} == {"float32", "float64"}
    assert {agreement.backend for agreement in agreements} == set(BACKENDS)
    assert len({agreement.structure for agreement in agreements}) >= 5
    for agreement in agreements:
        assert agreement.passed, agreement
        exact = agreement.dtype == "float64"
        native = agreement.backend == "native"
        assert agreement.energy_ev_per_atom <= (1e-11 if exact else 2e-5 if native else 1e-6)
        largest = max(1.0, agreement.largest_force_ev_per_angstrom)
        assert agreement.forces_ev_per_angstrom <= (1e-9 if exact else 2e-5) * largest


def test_verification_fails_if_one_difference_is_above_its_tolerance():
    for dtype, energy, force in [("float32", 1e-6, 2e-5), ("float64", 1e-11, 1e-9)]:
        assert Agreement("one", dtype, 1, energy, force, 0.5).passed
        assert Agreement("one", dtype, 1, energy, 9.0 * force, 10.0).passed
        assert not Agreement("one", dtype, 1, 1.1 * energy, 0.0, 10.0).passed
        assert not Agreement("one", dtype, 1, 0.0, 1.1 * force, 0.5).passed
        assert not Agreement("one", dtype, 1, float("nan"), 0.0, 0.5).passed


def test_verification_sees_a_wrong_weight(
    archive64: Archive, random_student: RandomStudent, tiny_checkpoint: Path
):
    source = read_model(tiny_checkpoint)
    assert all(each.passed for each in compare_with_eager(source, archive64))
    archive64.module.state_dict()["student.blocks.1.update_in.weight"][3, 5].add_(1e-6)
    assert not all(each.passed for each in compare_with_eager(source, archive64))


def test_failed_verification_leaves_the_existing_output_untouched(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The compiled model differs from the student, in memory and in the file."""

    def broken(source: Archive, dtype: torch.dtype) -> Student:
        student = student_of(source, dtype)
        student.blocks[0].filter.bias[7] += 0.01
        return student

    monkeypatch.setattr(export_module, "student_of", broken)
    output = tmp_path / "model.pt"
    output.write_bytes(b"the archive that works")
    with pytest.raises(ArchiveError, match=r"archive of random_tiny disagrees .* ethanol, open"):
        export(tiny_checkpoint, output)
    assert output.read_bytes() == b"the archive that works"
    assert len(list(tmp_path.iterdir())) == 1


def test_export_replaces_an_existing_archive(tiny_checkpoint: Path, tmp_path: Path):
    output = tmp_path / "model.pt"
    output.write_bytes(b"old")
    export(tiny_checkpoint, output, verify=False)
    assert load_archive(output).metadata["name"] == "random_tiny"


def test_exports_into_bad_places_leave_nothing_behind(tiny_checkpoint: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for output in ("missing/model.pt", "file/model.pt", "folder", "n" * 300 + ".pt"):
        with pytest.raises(InputError, match=f"cannot write {tmp_path / output}"):
            export(tiny_checkpoint, tmp_path / output, verify=False)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_export_into_a_folder_that_may_not_be_written_to(tiny_checkpoint: Path, tmp_path: Path):
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):  # root may write anywhere except in /sys
        folder = Path("/sys")
        if not folder.is_dir():
            pytest.skip("no folder that this user may not write to")
    with pytest.raises(InputError, match=f"cannot write {folder / 'model.pt'}"):
        export(tiny_checkpoint, folder / "model.pt", verify=False)
    assert not (folder / "model.pt").exists()


def test_export_to_a_full_disk(tiny_checkpoint: Path, tmp_path: Path):
    """The shell's limit of the size of a file takes the place of the disk; any user can set it."""
    output = tmp_path / "model.pt"
    output.write_bytes(b"the archive that works")
    arguments = f"export.py --checkpoint '{tiny_checkpoint}' --no-verify -o '{output}'"
    result = subprocess.run(
        ["bash", "-c", f"ulimit -f 100; exec '{sys.executable}' {arguments}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert f"cannot write {output}: File too large" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert output.read_bytes() == b"the archive that works"


def test_two_exports_have_the_same_bytes(archive: Archive, tmp_path: Path):
    """Also if the name of the file differs; torch would write it into the file."""
    for name in ("one.pt", "two.pt"):
        save_archive(archive, tmp_path / name)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_export_of_an_unknown_precision(tiny_checkpoint: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"float16.*float32"):
        export(tiny_checkpoint, tmp_path / "model.pt", dtype="float16")


def test_missing_checkpoint(tmp_path: Path):
    with pytest.raises(ArchiveError, match="no checkpoint"):
        export(tmp_path / "nothing" / "model.pt", tmp_path / "out.pt")
    assert list(tmp_path.iterdir()) == []


def test_export_does_not_depend_on_the_machine_state(tiny_checkpoint: Path, tmp_path: Path):
    """Two exports have the same weights, hash and reference numbers."""
    metadata = []
    for index in range(2):
        torch.manual_seed(index)
        export(tiny_checkpoint, tmp_path / "model.pt", verify=False)
        metadata.append(load_archive(tmp_path / "model.pt").metadata)
    assert metadata[0] == metadata[1]
    assert len(metadata[0]["weights_sha256"]) == hashlib.sha256().digest_size * 2
