"""Provide a decorator and a fixture for pytest that test whether a force field conserves energy.

The decorator is `energy_conserved`. The fixture is `conserves_energy`; it needs this line in
conftest.py:

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
    """Turn a function that returns atoms and a calculator into a test of energy conservation.

    The function may take fixtures and parameters. The test runs `mlff_student.validation.nve`, and
    fails with the table of figures if a figure does not pass.

    Parameters
    ----------
    **options : Any
        Keyword arguments of `mlff_student.validation.nve`.

    Returns
    -------
    Callable[..., Callable[..., None]]
        The decorator.

    Examples
    --------
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
    """Fixture: a function that runs `nve`, and fails the test if a figure does not pass.

    The function takes the arguments of `mlff_student.validation.nve`. The message of a failed test
    is the table of figures.

    Returns
    -------
    Callable[..., NVEResult]
        The function.

    Examples
    --------
    def test_my_model(conserves_energy):
        conserves_energy(molecule("CH3CH2OH"), MyCalculator(), ps=1)
    """

    def check(*arguments: Any, **options: Any) -> NVEResult:
        __tracebackhide__ = True
        options.setdefault("folder", Path(tempfile.mkdtemp(prefix="nve-", dir=tmp_path)))
        return _require(nve(*arguments, **options))

    return check


def _require(result: NVEResult) -> NVEResult:
    """Return the result of a run that passed; fail the test with the table if it did not."""
    __tracebackhide__ = True
    if not result.passed:
        pytest.fail(f"energy is not conserved: {result}", pytrace=False)
    return result
