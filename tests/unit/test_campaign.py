"""The protocols that come with the package: what they run, planned from any folder."""

from pathlib import Path

import pytest

from mlff_student.archive.registry import archive_of, checkpoint_path, read_card
from mlff_student.core.errors import InputError
from mlff_student.structures.reading import read_structure
from mlff_student.validation.protocol import (
    Liquid,
    Protocol,
    Runs,
    known_liquids,
    liquid_protocol,
    load_protocol,
    protocol_names,
    stability_protocol,
)
from mlff_student.validation.tasks import (
    CampaignTarget,
    CompareTask,
    RunTask,
    Task,
    held_out_molecules,
    prepare_structures,
    tasks_of,
    with_held_out,
)

MODELS = ("original", "tiny", "ultra_tiny")


def planned(protocol: Protocol, folder: Path, models: tuple[str, ...] = ("tiny",)) -> list[Task]:
    target = CampaignTarget(models, protocol.engines, "gfn2-xtb")
    protocol = with_held_out(protocol, models)
    return tasks_of(protocol, target, prepare_structures(protocol, folder))


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for the packed boxes of each protocol; a box that is there is not packed again."""
    return tmp_path_factory.mktemp("boxes")


@pytest.fixture(scope="module")
def campaign(boxes: Path) -> tuple[Protocol, dict[str, str]]:
    """The protocol "campaign" and its structures."""
    protocol = load_protocol("campaign")
    return protocol, prepare_structures(protocol, boxes / "campaign")


@pytest.mark.parametrize("name", protocol_names())
def test_shipped_protocols_are_planned_from_any_folder(name, boxes, tmp_path, monkeypatch):
    """Their structures and models can be had where no checkout is, and comparisons have runs."""
    monkeypatch.chdir(tmp_path)
    protocol = load_protocol(name)
    assert protocol.about
    tasks = planned(protocol, boxes / name, protocol.models or ("tiny",))
    names = {task.name for task in tasks}
    assert all(set(task.needs) <= names for task in tasks)
    assert any(task.judged for task in tasks)
    for model in {task.proposal_model for task in tasks if isinstance(task, RunTask)} - {""}:
        archive_of(model)  # raises where there is none


@pytest.mark.parametrize("name", protocol_names())
def test_judged_ladders_of_timesteps_have_three(name):
    for step in load_protocol(name).steps:
        if step.step == "timestep_ladder":
            assert sum(timestep <= step.judged_to_fs for timestep in step.timesteps_fs) >= 3


def test_campaign_is_what_was_asked_for(campaign):
    """Three students in two engines: five molecules of 15 to 32 atoms with hydrogens, one of them
    with fluorine, 10 and 50 ps, and one for a nanosecond.
    """
    protocol, sources = campaign
    assert protocol.models == MODELS
    assert protocol.engines == ("openmm", "lammps")
    steps = {step.step: step for step in protocol.steps}
    molecules = [read_structure(sources[name]).atoms for name in steps["nve"].structures]
    assert len(molecules) == 5
    assert all(15 <= len(atoms) <= 32 for atoms in molecules)
    elements = [set(atoms.symbols) for atoms in molecules]
    assert all("H" in symbols and symbols <= set("HCNOF") for symbols in elements)
    assert sum("F" in symbols for symbols in elements) == 1
    assert steps["nve"].ps == (10.0, 50.0)
    assert steps["nve_1ns"].ps == (1000.0,)
    for model in protocol.models:
        held_out = read_card(checkpoint_path(model))["held_out"]["test"]
        assert set(steps["nve"].structures) <= set(held_out)


def test_campaign_has_its_liquid_and_its_ladders(campaign):
    """100 to 1000 K, 3 to 500 atoms, timesteps of which three are judged; a box at constant volume
    and pressure, with the teacher's ensemble, at half a femtosecond.
    """
    protocol, sources = campaign
    steps = {step.step: step for step in protocol.steps}
    temperatures = steps["temperature_ladder"].temperatures_K
    assert (min(temperatures), max(temperatures), len(temperatures)) == (100.0, 1000.0, 10)
    sizes = [len(read_structure(sources[name]).atoms) for name in steps["size_ladder"].structures]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (3, 495)
    for box in (steps["liquid"], steps["liquid_water"]):
        assert box.nvt_ps > box.burn_in_ps > 0 and box.npt_ps > 0
        assert box.teacher_ps > 2 * box.burn_in_ps
        assert box.timestep_fs == 0.5
    tasks = tasks_of(protocol, CampaignTarget(("tiny",), ("openmm",), "gfn2-xtb"), sources)
    methanol = [task for task in tasks if task.step == "liquid" and isinstance(task, RunTask)]
    assert {(task.settings.model, task.proposal_model) for task in methanol} == {
        ("tiny", ""),
        ("gfn2-xtb", "original"),
    }
    kinds = [task.identity()["kind"] for task in tasks]
    assert kinds.count("rdf") == kinds.count("convergence") == kinds.count("spectrum") == 2


def test_held_out_molecules_are_unseen_by_every_model_and_of_all_sizes():
    molecules = held_out_molecules(MODELS, 20)
    lengths = [len(molecule.smiles) for molecule in molecules]
    assert len({molecule.name for molecule in molecules}) == 20
    assert lengths == sorted(lengths) and lengths[-1] > 3 * lengths[0]
    for model in MODELS:
        unseen = set(read_card(checkpoint_path(model))["held_out"]["test"])
        assert {molecule.name for molecule in molecules} <= unseen


@pytest.mark.parametrize("model", ["card_without_names", "gfn2-xtb"])
def test_held_out_molecules_need_a_card(model, tiny_checkpoint):
    """A random student's card names none; a teacher has no card."""
    model = str(tiny_checkpoint) if model == "card_without_names" else model
    with pytest.raises(InputError, match="5 held-out molecules are asked for"):
        held_out_molecules(("tiny", model), 5)


def test_stability_adds_held_out_molecules_to_its_structures(tmp_path):
    (step,) = stability_protocol(molecules=2, ps=3.0).steps
    assert isinstance(step, Runs) and (step.held_out, step.ps) == (2, (3.0,))
    tasks = planned(stability_protocol(molecules=2, ps=3.0), tmp_path)
    assert [task.structure for task in tasks] == [m.name for m in held_out_molecules(("tiny",), 2)]
    for task in tasks:
        assert isinstance(task, RunTask) and task.judged
        assert task.settings.ensemble == "nve"
        assert task.settings.steps * task.settings.timestep_fs == pytest.approx(3000.0)


def test_liquid_of_the_table_has_its_experiment(tmp_path):
    protocol = liquid_protocol("methanol", molecules=4, equilibrate_ps=2, ps=3, seed=7)
    (task,) = planned(protocol, tmp_path)
    assert isinstance(task, RunTask)
    assert (task.molecules, task.atoms) == (4, 24)
    assert (task.equilibrate_ps, task.experiment) == (2, "methanol")
    settings = task.settings
    assert (settings.ensemble, settings.seed, settings.pressure_bar) == ("npt", 7, 1.0)
    assert settings.steps * settings.timestep_fs == pytest.approx(5000.0), "both lengths"


def test_liquid_of_another_molecule_has_none(tmp_path):
    (task,) = planned(liquid_protocol("CNC=O", molecules=2), tmp_path)
    assert isinstance(task, RunTask) and not task.experiment
    assert "liquid/liquid-npt" in task.name, "SMILES are no names of folders"


def test_packing_depends_on_the_seed(tmp_path):
    positions = []
    for seed in (1, 1, 2):
        protocol = liquid_protocol("water", molecules=3, seed=seed)
        sources = prepare_structures(protocol, tmp_path / str(len(positions)))
        positions.append(read_structure(sources["water"]).atoms.positions)
    assert (positions[0] == positions[1]).all()
    assert not (positions[0] == positions[2]).all()


def test_every_known_liquid_is_one():
    """Its protocol can be planned: the SMILES are of the right molecules."""
    sizes = {"water": 3, "methanol": 6, "ethanol": 9, "acetone": 10, "acetonitrile": 6}
    sizes |= {"benzene": 12, "hexane": 20}
    assert set(known_liquids()) == set(sizes)
    for name, atoms in sizes.items():
        assert len(read_structure(known_liquids()[name].smiles).atoms) == atoms
        (step,) = liquid_protocol(name).steps
        assert isinstance(step, Liquid) and step.experiment == name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"molecules": 1}, "two molecules or more, got 1"),
        ({"ps": 0.5}, "10 frames or more, got npt_ps 0.5"),
        ({"equilibrate_ps": -1.0}, "equilibrate_ps must not be negative"),
        ({"temperature_K": 0.0}, "temperature_K must be positive"),
    ],
)
def test_liquids_that_cannot_be_run_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        liquid_protocol("water", **options)


def test_comparisons_of_a_liquid_leave_the_burn_in_out(tmp_path):
    """Of MD as long a stretch of student and teacher; of hybrid Monte Carlo all frames."""
    text = "boxes: {b: {smiles: O, count: 2}}\nsteps: [{step: a, box: b, replicas: 1, npt_ps: 0, "
    text += "nvt_ps: 5, teacher_ps: 3, burn_in_ps: 1"
    windows = []
    for extra in ("", ", proposal_model: tiny"):
        (tmp_path / "liquid.yaml").write_text(f"{text}{extra}}}]")
        tasks = planned(load_protocol(str(tmp_path / "liquid.yaml")), tmp_path)
        (comparison,) = (task for task in tasks if isinstance(task, CompareTask))
        windows.append((comparison.burn_in_ps, comparison.window_ps))
    assert windows == [(1.0, 2.0), (1.0, float("inf"))]


def test_liquid_is_compared_with_the_teachers_chains_at_its_pressure(tmp_path):
    """Density and g(r) with two chains of the box, and both gases for the vaporisation."""
    text = "boxes: {b: {smiles: O, count: 2}}\nsteps: [{step: a, box: b, nvt_ps: 0, npt_ps: 5, "
    text += "equilibrate_ps: 1, pressure_bar: 7, teacher_npt_ps: 3, gas_ps: 2, proposal_model: tiny"
    (tmp_path / "liquid.yaml").write_text(text + ", replicas: 2, seed: 4}]")
    tasks = planned(load_protocol(str(tmp_path / "liquid.yaml")), tmp_path)
    chains = [task for task in tasks if isinstance(task, RunTask) and task.proposal_model]
    boxes = [task for task in chains if task.settings.ensemble == "npt"]
    assert [task.settings.seed for task in boxes] == [4, 5]
    for task in boxes:
        settings = task.settings
        assert (settings.engine, settings.pressure_bar, settings.every) == ("ase", 7.0, 80)
        assert settings.steps * settings.timestep_fs == pytest.approx(4000.0)
    density, vaporisation = (task for task in tasks if isinstance(task, CompareTask))
    assert (density.kind, density.burn_in_ps, density.with_rdf) == ("density", 1.0, True)
    assert density.references == tuple(task.name for task in boxes)
    (gas,) = (task for task in chains if task not in boxes)
    assert (gas.atoms, gas.molecules, gas.settings.structure) == (3, 1, "O")
    assert vaporisation.references == (*density.references, gas.name)
    assert vaporisation.needs[:2] == ("tiny/openmm/a/b-npt-1", "tiny/openmm/a/b-gas-1")
