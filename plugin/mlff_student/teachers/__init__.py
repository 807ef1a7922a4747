"""Teachers: whatever labels structures with energies and forces, as ASE calculators by name."""

from mlff_student.teachers.registry import (
    TEACHERS,
    Teacher,
    is_teacher,
    make_teacher,
    teacher_names,
)

__all__ = ["TEACHERS", "Teacher", "is_teacher", "make_teacher", "teacher_names"]
