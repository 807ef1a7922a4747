"""The recipe: one YAML file that says which structures, which teacher, how to sample and train."""

from dataclasses import dataclass, field
from pathlib import Path

from mlff_student.core.errors import InputError, check_key
from mlff_student.core.settings import read_settings

ORGANIC_RECIPE = Path(__file__).with_name("organic.yaml")
GROUPS = ("molecule", "dimer", "cluster", "liquid", "file", "held_out")


@dataclass(frozen=True)
class HeldOut:
    """Fractions of the molecules (of the structures of files: by their bonds) not trained on."""

    validation: float
    test: float


@dataclass(frozen=True)
class StructureRecipe:
    """Where structures come from.

    Attributes
    ----------
    library : int
        Molecules of the library (or of `smiles`), drawn class by class.
    largest : int
        Most atoms a molecule may have.
    held_out : HeldOut
        Fractions of these molecules for validation and test.
    always : list[str]
        Names that must be in the training set.
    smiles : str
        File `SMILES name class`, tab-separated, instead of the library.
    brics : int
        Molecules recombined from the library's fragments, all for training.
    brics_largest : int
        Most atoms of those.
    conformers : int
        Embedded geometries a molecule.
    dimers, clusters, liquids : int
        Pairs, groups of molecules in vacuum, small periodic boxes of one liquid; each of molecules
        of one split, half of the pairs and groups of one kind.
    dimer_largest, cluster_largest, liquid_largest : int
        Most atoms; a cluster is filled up to a number drawn between this and a third of it.
    solvents : list[str]
        Names of molecules of which there are also pure liquids, in each one's own split.
    solvent_boxes : int
        Boxes of each.
    files : list[str]
        Structure files or folders of them, anything ASE or RDKit (SDF) reads, crystals too.
    split_by : str
        "molecule" holds out whole structures (all frames with the same bonds); "trajectory" holds
        out stretches of the files, for data of one structure, and says so in every card.
    """

    library: int
    largest: int
    held_out: HeldOut
    always: list[str] = field(default_factory=list)
    smiles: str = ""
    brics: int = 0
    brics_largest: int = 24
    conformers: int = 1
    dimers: int = 0
    clusters: int = 0
    liquids: int = 0
    dimer_largest: int = 24
    cluster_largest: int = 72
    liquid_largest: int = 24
    solvents: list[str] = field(default_factory=list)
    solvent_boxes: int = 1
    files: list[str] = field(default_factory=list)
    split_by: str = "molecule"


@dataclass(frozen=True)
class MD:
    """Langevin MD, one stretch a temperature, in this order.

    Attributes
    ----------
    by : str
        Who moves the atoms: "teacher", or a student (name or file) where the teacher is too slow
        for that. The teacher labels the frames either way.
    frames : int
        Kept in each stretch.
    interval : int
        Steps between frames.
    equilibration : int
        Steps before the first frame of a stretch.
    """

    temperatures_K: list[float]
    frames: int
    interval: int
    equilibration: int
    timestep_fs: float = 1.0
    friction_per_fs: float = 0.02
    by: str = "teacher"


@dataclass(frozen=True)
class NormalModes:
    """Thermal displacements along the normal modes of the relaxed structure (6 N teacher calls).

    Attributes
    ----------
    largest : int
        Most atoms; larger structures are passed over.
    """

    temperature_K: float
    frames: int
    largest: int


@dataclass(frozen=True)
class Augmentation:
    """Rattle-relax-repeat by the augment-atoms library."""

    frames: int
    temperature_K: float
    rattle: list[float] = field(default_factory=lambda: [0.03, 0.15])  # angstrom, least and most


@dataclass(frozen=True)
class Methods:
    """How one group of structures is turned into frames; what is not named is not done.

    Attributes
    ----------
    starts : bool
        Label the starting geometries themselves.
    rattle : float
        Angstrom, normal displacement of the starting geometries before they are labelled.
    contacts : int
        Frames with one bond or contact compressed or stretched.
    volumes : int
        Frames of periodic boxes with the molecules, rigid, moved apart or together.
    """

    starts: bool = False
    rattle: float = 0.0
    md: MD | None = None
    normal_modes: NormalModes | None = None
    augment: Augmentation | None = None
    contacts: int = 0
    volumes: int = 0


@dataclass(frozen=True)
class Rounds:
    """Student in the loop: its own MD proposes, a committee disagrees, the teacher labels.

    Attributes
    ----------
    count : int
        Rounds.
    model : str
        Preset of the committee's members.
    committee : int
        Members.
    steps : int
        Optimiser steps of each member before the first round, and again in each.
    structures : int
        Training structures (molecules of the library) that a round runs.
    temperature_K, ps, timestep_fs : float
        Of the student's MD.
    frames : int
        Labelled a structure, at most.
    disagreement : float
        eV/angstrom, least standard deviation of a force that is worth a label.
    """

    count: int
    model: str
    committee: int
    steps: int
    structures: int
    temperature_K: float
    ps: float
    timestep_fs: float = 0.5
    frames: int = 2
    disagreement: float = 0.3


@dataclass(frozen=True)
class TrainingRecipe:
    """Optimisation of one preset.

    Attributes
    ----------
    steps, batch : int
        Optimiser steps and frames a step.
    learning_rate : float
        Peak of a linear warm-up and cosine decay.
    warmup : int
        steps.
    energy_weight : float
        Of the squared energy error an atom (eV^2) against that of a force component
        (eV^2/angstrom^2).
    huber : float
        eV/angstrom; a larger error of a force component counts linearly, not squared, so that few
        strained frames do not lead (Huber 1964, doi:10.1214/aoms/1177703732); 0: all squared.
    virial_weight : float
        Of the squared error an atom of a component of the virial (eV^2), of periodic frames, which
        may be few.
    displaced_weight : float
        Of ln(1 + d), where d (eV/atom) is how far a frame whose atoms were thrown about lies below
        the frame. One in four is also shown thrown about: without it the network may say anything
        where no data are, and a minimiser goes and finds out. 0: none.
    clip : float
        Largest gradient norm.
    ema : float
        Decay of the weights' moving average, which is what is validated and kept.
    patience : int
        Validations without a better one before training stops early; 0: never.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 300
    energy_weight: float = 10.0
    huber: float = 0.1
    virial_weight: float = 100.0
    displaced_weight: float = 0.02
    clip: float = 5.0
    ema: float = 0.999
    patience: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise InputError(f"steps and batch must be positive, got {self.steps}, {self.batch}")


@dataclass(frozen=True)
class Recipe:
    """A whole distillation.

    Attributes
    ----------
    teacher : str
        A name that `mlff_student.teachers.make_teacher` knows.
    sampling : dict[str, Methods]
        Methods for each group of structures.
    largest_force : float
        Frames with a larger force component are dropped, eV/angstrom.
    training : dict[str, TrainingRecipe]
        Settings for each preset.
    """

    teacher: str
    seed: int
    structures: StructureRecipe
    sampling: dict[str, Methods]
    training: dict[str, TrainingRecipe]
    largest_force: float = 30.0
    rounds: Rounds | None = None


def read_recipe(path: Path) -> Recipe:
    """Recipe of a YAML file.

    Raises
    ------
    InputError
        See `read_settings`; an unknown group of structures or kind of split.
    """
    recipe = read_settings(path, Recipe)
    check_key(recipe.sampling, GROUPS, "sampling")
    check_key([recipe.structures.split_by], ("molecule", "trajectory"), "structures.split_by")
    return recipe
