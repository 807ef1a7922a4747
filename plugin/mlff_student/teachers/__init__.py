"""Teachers, which label structures with energies and forces: ASE calculators by name."""

from mlff_student.teachers.registry import (
    TEACHERS,
    Teacher,
    is_teacher,
    make_teacher,
    teacher_names,
)

__all__ = ["TEACHERS", "Teacher", "is_teacher", "make_teacher", "teacher_names"]
