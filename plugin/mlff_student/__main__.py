"""`python -m mlff_student`, which torchrun needs: the same as the command `mlff-student`."""

from mlff_student.cli import main

if __name__ == "__main__":
    main()
