"""Measure a finished run: energy, ensemble, forces, structure, transport and spectrum.

Each module measures one property with pure functions that return frozen dataclasses. The method
`figures` of each dataclass returns the numbers that are judged, printed and written as JSON
(`mlff_student.core.figures`).
"""

from mlff_student.analysis.run import Analysis, Reference, analyze
from mlff_student.analysis.thermo import Thermo, read_thermo
from mlff_student.structures.trajectories import Frames, stream_frames

__all__ = [
    "Analysis",
    "Frames",
    "Reference",
    "Thermo",
    "analyze",
    "read_thermo",
    "stream_frames",
]
