"""Prepare the text of XYZ, GRO and PDB files for the libraries that read them.

One frame is taken out, an unbounded number of atoms in a header is refused, and elements that are
written as names of atoms are recognised.
"""

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ase.data import atomic_numbers, chemical_symbols

from mlff_student.core.errors import InputError

ISOTOPES = {"D": 2.01410178, "T": 3.01604928}  # amu, AME2020, doi:10.1088/1674-1137/abddaf
TWO_LETTERS = ("CL", "BR", "SI", "SE")  # first letters of atom names that are no carbon or sulfur
METALS = ("FE", "MG", "MN", "ZN", "CU")  # names of atoms in a larger residue, such as haem
RESIDUE, ELEMENT, CHARGE = slice(17, 27), slice(76, 78), slice(78, 80)  # columns of a PDB line

Frame = TypeVar("Frame")


def choose_frame(path: Path, frames: Iterable[Frame], index: int) -> tuple[Frame, int]:
    """Return one of the frames and their number, with few of them in memory.

    Parameters
    ----------
    path : Path
        File of the frames, for error messages.
    frames : Iterable[Frame]
        All frames or molecules of the file, in their order.
    index : int
        Index of the frame, from 0; a negative one counts from the end.

    Raises
    ------
    InputError
        There are no frames, or not so many.
    """
    count, chosen = 0, deque[Frame](maxlen=max(1, -index))
    for frame in frames:
        if index < 0 or count == index:
            chosen.append(frame)
        count += 1
    if not count:
        raise InputError(f"{path} contains no structure")
    if not -count <= index < count:
        raise InputError(
            f"{path} has {count} frames or molecules, and there is no {index}; the first is 0, the "
            "last -1"
        )
    return chosen[0], count


def frames_of_xyz(path: Path) -> Iterator[list[str]]:
    """Read the lines of each frame of an XYZ or extended XYZ file.

    Parameters
    ----------
    path : Path
        XYZ file.

    Yields
    ------
    list[str]
        Lines of one frame: number of atoms, comment, atoms and, in ADF's dialect, cell vectors.

    Raises
    ------
    InputError
        The number of atoms is no number, or larger than the number of lines.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        line = file.readline()
        frame: list[str] = []
        while line:
            if line.strip():
                count = _count(path, line)
                frame = [line, *islice(file, count + 1)]
                if len(frame) < count + 2:
                    raise _too_short(path, count, len(frame) - 2)
                line = file.readline()
                while line.lstrip().startswith("VEC"):
                    frame.append(line)
                    line = file.readline()
                yield frame
            else:
                line = file.readline()
                if frame and not line.strip().isdecimal() and line.strip():
                    return  # ASE reads no further than an empty line either


def check_counts(path: Path) -> None:
    """Refuse an XYZ file if a frame has fewer lines than its header says; other files pass.

    ASE reads as many lines as the header says, also beyond the end of the file.

    Parameters
    ----------
    path : Path
        File that ASE is going to read.

    Raises
    ------
    InputError
        As of `frames_of_xyz`.
    """
    if path.suffix.lower() in (".xyz", ".extxyz"):
        deque(frames_of_xyz(path), maxlen=0)


def frames_of_gro(path: Path) -> Iterator[list[str]]:
    """Read the lines of each frame of a GRO file.

    Parameters
    ----------
    path : Path
        GRO file.

    Yields
    ------
    list[str]
        Lines of one frame: title, number of atoms, atoms, box.

    Raises
    ------
    InputError
        The number of atoms is no number, or larger than the number of lines.
    """
    with path.open(errors="replace") as file:
        for title in file:
            second = file.readline()
            if not title.strip() and not second.strip():
                continue
            count = _count(path, second)
            lines = list(islice(file, count + 1))
            if len(lines) < count:
                raise _too_short(path, count, len(lines))
            yield [title, second, *lines[:count], *(lines[count:] or ["\n"])]


def check_poscar(path: Path) -> None:
    """Refuse a POSCAR file that claims more atoms than it has bytes; ASE would make room for them.

    Parameters
    ----------
    path : Path
        Any file; only those with names of VASP are looked at.

    Raises
    ------
    InputError
        The file claims too many atoms.
    """
    if path.suffix.lower() == ".vasp" or path.name.startswith(("POSCAR", "CONTCAR")):
        with path.open(errors="replace") as file:
            for line in islice(file, 5, 7):  # numbers of atoms, after symbols or without them
                words = line.split()
                if words and all(word.isascii() and word.isdecimal() for word in words):
                    if sum(map(int, words)) > path.stat().st_size:
                        raise InputError(f"{path} claims {line.strip()} atoms and is too short")


def _count(path: Path, line: str) -> int:
    """Return the number of atoms in a header."""
    text = line.strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise InputError(f"{path}: expected the number of atoms, found {text[:60]!r}")
    return int(text)


def _too_short(path: Path, claimed: int, lines: int) -> InputError:
    return InputError(
        f"{path} ends too early: a frame should have {claimed} atoms and has {max(lines, 0)}"
    )


def with_elements(path: Path, lines: list[str]) -> tuple[list[str], dict[int, float]]:
    """Replace labels such as C1, D and 6 in a frame of an XYZ file by the symbols of elements.

    Parameters
    ----------
    path : Path
        XYZ file, for error messages.
    lines : list[str]
        Lines of the frame.

    Returns
    -------
    lines : list[str]
        Lines with symbols in the first column.
    masses : dict[int, float]
        Masses of the atoms that are written as isotopes (D, T) by their index, amu.

    Raises
    ------
    InputError
        A label is no element, or an atom has fewer columns than the comment says.
    """
    properties = re.search(r"""Properties=["']?([^\s"']+)""", lines[1])
    columns = properties.group(1).split(":") if properties else ["species", "S", "1"]
    widths = [int(width) for width in columns[2::3] if width.isdecimal()]
    replaced, masses = lines[:2], {}
    atoms = int(lines[0])
    for index, line in enumerate(lines[2 : 2 + atoms]):
        words = line.split()
        if len(words) < max(sum(widths), 1):
            raise InputError(f"{path}: the line of atom {index} has {len(words)} columns: {line!r}")
        if columns[:3] == ["species", "S", "1"]:
            label = re.fullmatch(r"([A-Za-z]{1,2})\d*|(\d{1,3})", words[0])
            symbol = label[1].capitalize() if label and label[1] else ""
            if label and label[2] and 0 < int(label[2]) < len(chemical_symbols):
                symbol = chemical_symbols[int(label[2])]
            if symbol in ISOTOPES:
                masses[index], symbol = ISOTOPES[symbol], "H"
            if symbol not in atomic_numbers:
                raise InputError(f"{path}: atom {index} is {words[0]!r}; expected is an element")
            line = f"{symbol} {line.split(maxsplit=1)[1]}"
        replaced.append(line)
    return [*replaced, *lines[2 + atoms :]], masses


def element_of(name: str, residue_atoms: int) -> str:
    """Return the element of an atom that has a name only, such as CA, 1HB or CL2.

    Parameters
    ----------
    name : str
        Name of the atom in a PDB or GRO file.
    residue_atoms : int
        Number of atoms of its residue: CA alone is calcium, and a carbon otherwise.

    Returns
    -------
    str
        Symbol of the element, D for deuterium; empty if the name has none.
    """
    letters = re.sub(r"[^A-Z].*", "", re.sub(r"^[^A-Z]+", "", name.upper()))
    two = letters[:2].capitalize()
    is_two = residue_atoms == 1 or letters.startswith(TWO_LETTERS) or letters in METALS
    if is_two and two in atomic_numbers:
        return two
    first = letters[:1]
    return first if first == "D" or (first in atomic_numbers and first != "X") else ""


def frames_of_pdb(path: Path, shared: list[str]) -> Iterator[list[str]]:
    """Read the lines of each model of a PDB file; frames may also be separated by END records.

    Parameters
    ----------
    path : Path
        PDB file.
    shared : list[str]
        List that receives the records outside of the models, such as cell and bonds. It is complete
        after the last model.

    Yields
    ------
    list[str]
        Lines of one model.
    """
    frame: list[str] = []
    has_atoms = False
    with path.open(errors="replace") as file:
        for line in file:
            record = line[:6].strip()
            if record in ("MODEL", "ENDMDL", "END"):
                if has_atoms:
                    yield frame
                else:
                    shared += frame
                frame, has_atoms = [], False
            elif record in ("ATOM", "HETATM", "TER", "CRYST1", "CONECT"):
                frame.append(line if line.endswith("\n") else f"{line}\n")
                has_atoms |= record in ("ATOM", "HETATM")
    if has_atoms:
        yield frame
    else:
        shared += frame


def pdb_text(frame: list[str], shared: list[str]) -> str:
    """Return the text of a PDB file with one model, an element for each atom, and no empty cell.

    Parameters
    ----------
    frame : list[str]
        Lines of the model.
    shared : list[str]
        Records of all models.
    """
    cells = [line for line in frame if line.startswith("CRYST1")]
    cells = cells or [line for line in shared if line.startswith("CRYST1")]
    cells = [line for line in cells[-1:] if re.search(r"[1-9]", line[6:33])]
    sizes = Counter(line[RESIDUE] for line in frame if line.startswith(("ATOM", "HETATM")))
    atoms = [
        _with_element(line, sizes[line[RESIDUE]])
        for line in frame
        if line.startswith(("ATOM", "HETATM", "TER"))
    ]
    bonds = [line for line in frame + shared if line.startswith("CONECT")]
    return "".join([*cells, *atoms, *bonds, "END\n"])


def _with_element(line: str, residue_atoms: int) -> str:
    """Return a line of an atom with its element, taken from the name if the column has none."""
    if line.startswith("TER"):
        return line
    line = line.rstrip("\n")
    symbol = line[ELEMENT].strip().capitalize()
    if symbol != "D" and not atomic_numbers.get(symbol):
        symbol = element_of(line[12:16], residue_atoms)
    # A charge has a sign. Old files have the number of the line in these columns.
    charge = line[CHARGE] if re.search("[+-]", line[CHARGE]) else ""
    return f"{line[:76]:<76}{symbol.upper():>2}{charge}\n"
