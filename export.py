"""Write a model as one TorchScript file: python export.py --model original"""

import typer

from mlff_student.cli import export_command, run

if __name__ == "__main__":
    run(lambda: typer.run(export_command))
