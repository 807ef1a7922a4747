"""The recipe: a YAML file with the structures, the teacher, the sampling and the training."""

from dataclasses import dataclass, field
from pathlib import Path

from mlff_student.core.errors import InputError, check_key
from mlff_student.core.settings import read_settings

ORGANIC_RECIPE = Path(__file__).with_name("organic.yaml")
CONDENSED_RECIPE = Path(__file__).with_name("condensed.yaml")
TRAINED_GROUPS = ("molecule", "dimer", "cluster", "liquid", "file")
GROUPS = (*TRAINED_GROUPS, "held_out")


@dataclass(frozen=True)
class HeldOut:
    """Fractions of the molecules that are not trained on.

    Structures from files count by their bonds: two files with the same bonds are one molecule.

    Attributes
    ----------
    validation : float
        Fraction used to choose the best weights, from 0 to 1.
    test : float
        Fraction used to measure the errors of the finished student, from 0 to 1.
    """

    validation: float
    test: float


@dataclass(frozen=True)
class Mixture:
    """Groups of molecules, open (clusters, droplets) or in periodic boxes (liquids, solutions).

    Attributes
    ----------
    name : str
        First part of the structures' names, and their kind in tables of errors.
    count : int
        Number of structures. They are shared among the splits in proportion to the molecules.
    atoms : list[int]
        Smallest and largest number of atoms of a structure; the number is drawn between them.
    solvents : list[str]
        Names or classes of the molecules that fill a structure.
    solutes : list[str]
        Names or classes of molecules, of which each structure has one; empty: no solute.
    kinds : int
        Number of different solvents in a structure.
    periodic : bool
        Whether a structure is a cubic periodic box.
    packing : float
        Van der Waals volume of the molecules over the volume of a box: 0.51 for hexane, 0.56 for
        benzene and ethanol, 0.67 for water and ethylene glycol, at their densities at 298 K.
    dilation : list[float]
        Smallest and largest factor of the volume of a box, which is drawn between them.
    """

    name: str
    count: int
    atoms: list[int]
    solvents: list[str]
    solutes: list[str] = field(default_factory=list)
    kinds: int = 1
    periodic: bool = False
    packing: float = 0.58
    dilation: list[float] = field(default_factory=lambda: [0.87, 1.25])

    def __post_init__(self) -> None:
        for key in ("atoms", "dilation"):
            low, high = getattr(self, key) if len(getattr(self, key)) == 2 else (1, 0)
            if not 0 < low <= high:
                raise InputError(
                    f"mixture {self.name}: {key} is {getattr(self, key)}; expected the smallest "
                    "and the largest value, above 0"
                )
        if self.kinds < 1 or not self.solvents:
            raise InputError(f"mixture {self.name} needs solvents, and kinds of 1 or more")


@dataclass(frozen=True)
class StructureRecipe:
    """Which structures a dataset has, and how they are split.

    Attributes
    ----------
    library : int
        Number of molecules of the library (or of `smiles`), taken from its classes in turn.
    largest : int
        Largest number of atoms of a molecule.
    held_out : HeldOut
        Fractions of these molecules for validation and test.
    always : list[str]
        Names of molecules that must be in the training set.
    smiles : str
        Tab-separated file with the columns SMILES, name and class, instead of the library.
    added_smiles : str
        File of the same form whose molecules are all used beside the library; `library` and
        `largest` do not apply to them; "condensed.smi" is the shipped list of ions, peptides and
        lipids.
    elements : list[str]
        Elements of the molecules; those with other elements are left out. Empty: no limit.
    charged : bool
        Whether molecules may be charged. The teacher must read the total charge from
        `atoms.info["charge"]`.
    brics : int
        Number of new molecules made of fragments of the library, all for training.
    brics_largest : int
        Largest number of atoms of such a molecule.
    conformers : int
        Number of embedded geometries of each molecule.
    dimers : int
        Number of pairs of molecules in vacuum. Both are of one split; half of the pairs are of two
        equal molecules.
    clusters : int
        Number of groups of molecules in vacuum. All are of one split; half of the groups are of
        equal molecules.
    liquids : int
        Number of small periodic boxes of one liquid.
    dimer_largest : int
        Largest number of atoms of a pair.
    cluster_largest : int
        Largest number of atoms of a group; each group is filled up to a number drawn between a
        third of this and this.
    liquid_largest : int
        Largest number of atoms of a box.
    solvents : list[str]
        Names of molecules that boxes of the pure liquid are made of, in the split of the molecule.
    solvent_boxes : int
        Number of boxes of each solvent.
    mixtures : list[Mixture]
        Clusters, droplets, liquids and solutions of named molecules or classes.
    files : list[str]
        Structure files, or folders of them, that ASE or RDKit (SDF) reads, crystals included.
    split_by : str
        "molecule" holds out whole molecules (all frames with the same bonds). "trajectory" holds
        out parts of the files, for data of one structure; every card then says so.
    """

    library: int
    largest: int
    held_out: HeldOut
    always: list[str] = field(default_factory=list)
    smiles: str = ""
    added_smiles: str = ""
    elements: list[str] = field(default_factory=list)
    charged: bool = False
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
    mixtures: list[Mixture] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    split_by: str = "molecule"


@dataclass(frozen=True)
class MD:
    """Langevin MD at one temperature after another, in the order of the list.

    Attributes
    ----------
    temperatures_K : list[float]
        Temperatures of the thermostat, kelvin.
    frames : int
        Number of frames kept at each temperature.
    interval : int
        Number of steps between frames.
    equilibration : int
        Number of steps at each temperature before the first frame.
    timestep_fs : float
        Timestep, femtosecond.
    friction_per_fs : float
        Friction of the thermostat, 1/femtosecond.
    by : str
        What moves the atoms: "teacher", or the name or file of a student where the teacher is too
        slow. The teacher labels the frames in both cases.
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
    temperature_K : float
        Temperature of the displacements, kelvin.
    frames : int
        Number of frames of each starting geometry.
    largest : int
        Largest number of atoms; larger structures get no such frames.
    """

    temperature_K: float
    frames: int
    largest: int


@dataclass(frozen=True)
class Augmentation:
    """Geometries rattled and partly relaxed again and again, by the augment-atoms library.

    Attributes
    ----------
    frames : int
        Number of frames of each starting geometry.
    temperature_K : float
        Temperature of the Boltzmann weights in the library's rules, kelvin.
    rattle : list[float]
        Smallest and largest standard deviation of a displacement, angstrom.
    """

    frames: int
    temperature_K: float
    rattle: list[float] = field(default_factory=lambda: [0.03, 0.15])


@dataclass(frozen=True)
class Methods:
    """How frames are made of one group of structures; a method that is not named is not used.

    Attributes
    ----------
    starts : bool
        Whether the starting geometries themselves are labelled.
    rattle : float
        Standard deviation of the displacement of each coordinate of a starting geometry before it
        is labelled, angstrom.
    md : MD, optional
        Frames of molecular dynamics.
    normal_modes : NormalModes, optional
        Frames displaced along normal modes.
    augment : Augmentation, optional
        Rattled and partly relaxed frames.
    contacts : int
        Number of frames with one bond compressed or stretched.
    torsions : int
        Number of frames of a molecule in which one bond, single or double, is turned by any angle.
        In every second frame the other coordinates are relaxed with MMFF94.
    volumes : int
        Number of frames of periodic boxes whose molecules are moved apart or together as rigid
        bodies.
    """

    starts: bool = False
    rattle: float = 0.0
    md: MD | None = None
    normal_modes: NormalModes | None = None
    augment: Augmentation | None = None
    contacts: int = 0
    torsions: int = 0
    volumes: int = 0


@dataclass(frozen=True)
class Rounds:
    """Rounds of active learning.

    In each round several students, the committee, are trained, or trained ones are given. They run
    MD of training structures, and the teacher labels the frames on which the committee disagrees.

    Attributes
    ----------
    count : int
        Number of rounds.
    model : str
        Preset of the members of a committee that is trained.
    committee : int
        Number of its members.
    steps : int
        Number of optimiser steps by which each member is trained in each round.
    structures : int
        Number of training structures of which MD is run in a round.
    ps : float
        Length of that MD at each temperature, picosecond.
    weights : dict[str, float]
        Share of each group of structures ("molecule", "dimer", "cluster", "liquid", "file"),
        relative to the others; a group that is not named gets none. Empty: in proportion to the
        numbers of structures.
    temperatures_K : list[float]
        Temperatures of that MD, one after another, kelvin. Empty: those of the MD in the group's
        section of `sampling`.
    timestep_fs : float
        Timestep of that MD, femtosecond.
    frames : int
        Largest number of frames of a structure that the teacher labels in a round.
    disagreement : float
        A frame is labelled if the standard deviation of the committee's forces on an atom is larger
        than this, eV/angstrom.
    """

    count: int
    model: str
    committee: int
    steps: int
    structures: int
    ps: float
    weights: dict[str, float] = field(default_factory=dict)
    temperatures_K: list[float] = field(default_factory=list)
    timestep_fs: float = 0.5
    frames: int = 2
    disagreement: float = 0.3

    def __post_init__(self) -> None:
        check_key(self.weights, TRAINED_GROUPS, "rounds.weights")
        if min(self.weights.values(), default=1.0) < 0 or not any(self.weights.values() or [1]):
            raise InputError(f"rounds.weights are {self.weights}; expected 0 or more, not all 0")
        if self.ps <= 0 or self.timestep_fs <= 0 or self.structures < 1 or self.frames < 1:
            raise InputError(
                f"rounds: ps {self.ps:g}, timestep_fs {self.timestep_fs:g}, structures "
                f"{self.structures}, frames {self.frames}; expected numbers above 0"
            )


@dataclass(frozen=True)
class TrainingRecipe:
    """How one preset is trained.

    Attributes
    ----------
    steps : int
        Number of optimiser steps.
    batch : int
        Largest number of frames in a step.
    edges : int
        Largest number of edges in a step, so that large boxes and small molecules take the same
        time: a step then has as many frames as fit; 0: no limit. A larger frame is a step alone.
    learning_rate : float
        Highest learning rate, which a linear warm-up reaches and a cosine lowers to zero.
    warmup : int
        Number of steps of the warm-up.
    energy_weight : float
        Weight of the squared energy error per atom (eV^2); the squared error of a force component
        (eV^2/angstrom^2) has the weight 1.
    energy_ramp : float
        Factor of the weights of energies, virials and energy differences in the first step, which
        grows geometrically to 1 at the end. At first these errors are so large that the forces,
        which say the most, would hardly count.
    free_molecule_energies : bool
        Whether a constant is fitted to the energy of each molecule, so that energies of different
        molecules are not compared; see `mlff_student.distill.molecule_energies`.
    difference_weight : float
        Weight of the squared error of the energy difference between two frames of one structure,
        divided by its number of atoms (eV^2). With it, frames come in pairs of one structure, so
        that conformers are learned by their relative energies. 0: frames are drawn one by one.
    huber : float
        Error of a force component above which it counts linearly and not squared, eV/angstrom, so
        that a few strained frames do not dominate (Huber 1964, doi:10.1214/aoms/1177703732); 0: all
        errors are squared.
    virial_weight : float
        Weight of the squared error of a component of the virial per atom (eV^2), for periodic
        frames with a stress.
    displaced_weight : float
        Weight of ln(1 + d) for frames whose atoms are displaced at random by a large distance. d
        (eV/atom) is how far the predicted energy of the displaced frame lies below that of the
        frame itself. One in four frames is also shown displaced; without this term the energy
        where there are no data is arbitrary, and a minimiser finds such places. 0: no such frames.
    share : float
        Share of the time that a bundle trains this preset, relative to the shares of the others.
    clip : float
        Largest norm of the gradient.
    ema : float
        Decay per step of the moving average of the weights, which is validated and kept.
    patience : int
        Number of validations without a better result after which training stops; 0: it does not.
    """

    steps: int
    batch: int
    learning_rate: float
    edges: int = 0
    warmup: int = 300
    energy_weight: float = 10.0
    energy_ramp: float = 1.0
    free_molecule_energies: bool = False
    difference_weight: float = 0.0
    huber: float = 0.1
    virial_weight: float = 100.0
    displaced_weight: float = 0.02
    share: float = 1.0
    clip: float = 5.0
    ema: float = 0.999
    patience: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise InputError(f"steps and batch must be 1 or more, got {self.steps}, {self.batch}")
        if not 0.0 < self.energy_ramp <= 1.0:
            raise InputError(f"energy_ramp must be above 0 and at most 1, got {self.energy_ramp}")


@dataclass(frozen=True)
class Recipe:
    """The settings of a whole distillation.

    Attributes
    ----------
    teacher : str
        Name of the teacher, which `mlff_student.teachers.make_teacher` takes.
    seed : int
        Random seed of all draws.
    structures : StructureRecipe
        Which structures the dataset has.
    sampling : dict[str, Methods]
        How frames are made of each group of structures; the groups are in `GROUPS`.
    training : dict[str, TrainingRecipe]
        How each preset is trained.
    largest_force : float
        Largest force component of a frame that is kept, eV/angstrom.
    rounds : Rounds, optional
        Rounds of active learning.
    """

    teacher: str
    seed: int
    structures: StructureRecipe
    sampling: dict[str, Methods]
    training: dict[str, TrainingRecipe]
    largest_force: float = 30.0
    rounds: Rounds | None = None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    path : Path
        YAML file.

    Raises
    ------
    InputError
        There is no such file, a key is unknown or missing, or a value is of the wrong type.
    """
    recipe = read_settings(path, Recipe)
    check_key(recipe.sampling, GROUPS, "sampling")
    check_key([recipe.structures.split_by], ("molecule", "trajectory"), "structures.split_by")
    return recipe
