"""Two rules for every run of the tests, of `tests/` and `lab/` alike, so that green never means less than it says.

* In CI (CI=true or RAUTA_CI=1) a skipped test is a failed one: what CI can't run, it does not prove.
* A full run (no paths, no selection) that collects fewer tests than `minimum_tests` in pyproject.toml is refused: tests
  that are not found, after a rename or a broken parametrisation, don't fail by themselves.

This file lies at the root because pytest asks only the conftest.py files above a test about that test.
"""

import os
from collections.abc import Generator, Mapping

import pytest

_SELECTIONS = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "failedfirst", "stepwise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("minimum_tests", "Fail a full run that collects fewer tests than this.", default="0")


def in_ci(environment: Mapping[str, str]) -> bool:
    """Whether skipping is failing: CI=true (or 1), as the usual services set it, or RAUTA_CI=1."""
    return environment.get("CI", "").lower() in {"1", "true"} or environment.get("RAUTA_CI") == "1"


def is_full_run(config: pytest.Config) -> bool:
    """Whether pytest was asked for all tests: no paths on the command line, and no option that selects some of them."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return whole and not any(config.getoption(option, default=None) for option in _SELECTIONS)


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and in_ci(os.environ):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}\nIn CI no test may be skipped: provide what it needs, or remove it."


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def pytest_collection_finish(session: pytest.Session) -> None:
    minimum = int(session.config.getini("minimum_tests"))
    found = len(session.items)
    if found < minimum and is_full_run(session.config) and not session.testsfailed:
        raise pytest.UsageError(
            f"{found} tests were collected, of at least {minimum} (minimum_tests in pyproject.toml): "
            "find those that are gone, or, if they were removed on purpose, lower the number in the same commit."
        )
