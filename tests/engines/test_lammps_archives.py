"""The pair style's reader of archives refuses damaged files, and none of them ends the process."""

import json
import random
import subprocess
import sys
from pathlib import Path

from mlff_student.archive.contents import read_members, write_members
from mlff_student.engines.lammps.plugin import lammps_environment

# One LAMMPS reads all files; an error raises an exception, after which it takes further commands.
PROGRAM = """
import sys
import lammps
lmp = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
lmp.commands_string('''
units metal
region box block 0 9 0 9 0 9
create_box 1 box
create_atoms 1 single 1 1 1
create_atoms 1 single 1 1 1.75
mass 1 1.008
pair_style mlff_student
''')
outcomes = []
for path in sys.argv[1:]:
    try:
        lmp.command(f"pair_coeff * * {path} H")
        outcomes.append("read")
    except Exception as error:
        text = str(error)
        assert "mlff_student" in text, text
        outcomes.append("refused")
print(" ".join(outcomes))
"""


def test_mutated_archives(tiny_archive: Path, tmp_path: Path):
    """Cut files, changed bytes anywhere, in the directory, and in members with right checksums."""
    rng, content, members = random.Random(3), tiny_archive.read_bytes(), read_members(tiny_archive)
    directory = content.index(b"PK\x01\x02")
    short = [name for name, data in members.items() if 0 < len(data) < 20_000]
    paths = [tiny_archive]
    for number in range(160):
        mutant, name = bytearray(content), rng.choice(short)
        if number % 4 == 0:
            del mutant[rng.randrange(len(mutant)) :]
        elif number % 4 < 3:
            begin = 0 if number % 4 == 1 else directory
            for _ in range(rng.randint(1, 5)):
                mutant[rng.randrange(begin, len(mutant))] = rng.choice([0, 255, rng.randrange(256)])
        else:
            part = bytearray(members[name])
            at = rng.randrange(len(part))
            part[at : at + rng.randrange(3)] = rng.randbytes(rng.randint(1, 4))
            mutant = write_members(members | {name: bytes(part)})
        paths.append(tmp_path / f"{number}.pt")
        paths[-1].write_bytes(mutant)
    metadata = json.loads(members["extra/metadata.json"])
    metadata["self_check"]["positions"] = [[1e300, 0.0, 0.0]] * 6
    paths.append(tmp_path / "far.pt")
    far = {"extra/metadata.json": json.dumps(metadata).encode()}
    paths[-1].write_bytes(write_members(members | far))
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, paths)],
        env=lammps_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    outcomes = result.stdout.split()
    assert len(outcomes) == len(paths)
    assert outcomes[0] == "read"
    assert outcomes[-1] == "refused"
    assert outcomes.count("refused") > 100
