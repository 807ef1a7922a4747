"""The bundle: one folder with data, recipe and code that trains students wherever torch is.

`python train.py --minutes 8` in the folder trains all presets of the recipe within that time, on a
GPU if there is one, and leaves weights, learning curves and errors. It resumes after a kill.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write
from mlff_student.distill.dataset import SPLITS, read_frames
from mlff_student.distill.packed import write_packed
from mlff_student.distill.recipe import Recipe

LARGEST_MB = 60.0
DATA, RECIPE, SCRIPT = "data.npz", "recipe.json", "train.py"
# A process that has imported the training only: its modules are the code that the bundle needs.
LIST_MODULES = """
import sys, mlff_student.distill.bundled
for name, module in sys.modules.items():
    if name.split(".")[0] == "mlff_student":
        print(name, module.__file__)
"""
START = """\
import sys
from pathlib import Path

# The finder of an editable installation would take the code of its checkout.
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in type(f).__module__]
sys.path.insert(0, str(Path(__file__).parent / "code"))
from mlff_student.distill.bundled import main

main(Path(__file__).parent)
"""


def write_bundle(
    recipe: Recipe, dataset: Path, folder: Path, structures: int = 0, largest_mb: float = LARGEST_MB
) -> float:
    """Pack data, recipe and code into a folder that needs torch and NumPy only.

    Parameters
    ----------
    recipe : Recipe
        Says which presets are trained, and how.
    dataset : Path
        HDF5 file that `distill sample` writes.
    folder : Path
        Folder to make. It must not exist, or hold an earlier bundle, which is replaced.
    structures : int
        Number of training structures, drawn with the random seed of the recipe; 0: all.
    largest_mb : float
        Largest size of the folder, megabyte.

    Returns
    -------
    float
        Size of the folder, megabyte.

    Raises
    ------
    InputError
        The folder holds something else, the dataset cannot be read or has no training frames, or
        the bundle would be larger than `largest_mb`.
    """
    if folder.exists() and not (folder / SCRIPT).is_file() and any(folder.iterdir()):
        raise InputError(f"{folder} exists and is no bundle; give another folder")
    splits = {
        split: read_frames(
            dataset, split, structures=structures if split == "train" else 0, seed=recipe.seed
        )
        for split in SPLITS
    }
    if not len(splits["train"].energies):
        raise InputError(f"{dataset} has no training frames; run `mlff-student distill sample`")
    folder.mkdir(parents=True, exist_ok=True)
    write_packed(folder / DATA, splits)
    shutil.rmtree(folder / "code", ignore_errors=True)
    listed = subprocess.run(
        [sys.executable, "-c", LIST_MODULES], capture_output=True, text=True, check=True
    )
    for line in listed.stdout.splitlines():
        name, file = line.split(" ", 1)
        parts = name.split(".")
        if Path(file).name == "__init__.py":
            parts.append("__init__")
        target = (folder / "code").joinpath(*parts).with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    for name, text in ((RECIPE, json.dumps(asdict(recipe), indent=1)), (SCRIPT, START)):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    if size > largest_mb:
        frames = len(splits["train"].energies)
        raise InputError(
            f"{folder} has {size:.0f} MB with {frames} training frames of "
            f"{len(splits['train'].names)} structures, more than {largest_mb:g} MB; give fewer "
            "with --structures, or a higher --largest-mb"
        )
    return size
