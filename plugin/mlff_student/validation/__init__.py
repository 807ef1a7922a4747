"""May this force field be trusted in MD? Protocols of runs, their verdict and the evidence."""

from .harness import NVEResult, nve

__all__ = ["NVEResult", "nve"]
