"""A student as a force of OpenMM.

from openmm_integration import create_system, student_force
"""

from .force import student_force
from .system import create_system
from .topology import load_structure

__all__ = ["create_system", "load_structure", "student_force"]
