"""For tests of force fields: the decorator `energy_conserved`, or the fixture `conserves_energy`,
which tests take as an argument once this is in conftest.py:

    pytest_plugins = ["mlff_student.validation.pytest_plugin"]
"""

import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator

from mlff_student.validation.harness import NVEResult, nve


def energy_conserved(**options: Any) -> Callable[..., Callable[..., None]]:
    """Make a test of a function that returns atoms and a calculator: `nve` runs them with these
    options. The function may take fixtures and parameters.

    Example
    -------
    @energy_conserved(ps=1)
    def test_my_model():
        return molecule("CH3CH2OH"), MyCalculator()
    """

    def decorate(make: Callable[..., tuple[Atoms, Calculator]]) -> Callable[..., None]:
        @wraps(make)
        def test(*arguments, **fixtures) -> None:
            __tracebackhide__ = True
            _require(nve(*make(*arguments, **fixtures), **options))

        return test

    return decorate


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
        folder = Path(tempfile.mkdtemp(prefix="nve-", dir=tmp_path))
        return _require(nve(*arguments, **{"folder": folder} | options))

    return check


def _require(result: NVEResult) -> NVEResult:
    """The result of a run that passed; of any other the test fails, with the table."""
    __tracebackhide__ = True
    if not result.passed:
        pytest.fail(f"energy is not conserved: {result}", pytrace=False)
    return result
