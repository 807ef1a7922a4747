"""What a finished run says: energy, ensemble, forces, structure, transport, spectrum.

Each module measures one thing by pure functions that return frozen dataclasses; `as_record` of each
is a flat dictionary with units in its keys.
"""

from .run import Analysis, analyze

__all__ = ["Analysis", "analyze"]
