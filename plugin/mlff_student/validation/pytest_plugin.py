"""Fixture for tests of force fields: put into conftest.py

    pytest_plugins = ["mlff_student.validation.pytest_plugin"]

and take `conserves_energy` as an argument of a test.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import NVEResult, nve


@pytest.fixture
def conserves_energy(tmp_path: Path) -> Callable[..., NVEResult]:
    """Run `nve` and fail the test, with the table of figures, where a threshold does.

    Example
    -------
    def test_my_model(conserves_energy):
        conserves_energy(molecule("CH3CH2OH"), MyCalculator(), ps=1)
    """

    def check(*arguments, **options) -> NVEResult:
        __tracebackhide__ = True
        result = nve(*arguments, **{"folder": tmp_path / "nve"} | options)
        if not result.passed:
            pytest.fail(f"energy is not conserved: {result}", pytrace=False)
        return result

    return check
