"""Run the command `mlff-student` as `python -m mlff_student`, the form that torchrun needs."""

from mlff_student.cli import main

if __name__ == "__main__":
    main()
