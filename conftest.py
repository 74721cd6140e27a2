"""Rules for every run of the tests, of `tests/` and `lab/` alike, so that green never means less than it says.

* In CI (CI=true or RAUTA_CI=1) a skipped test is a failed one: what CI can't run, it does not prove.
* A full run (no paths, no selection) that collects fewer tests than `minimum_tests` in pyproject.toml is refused: tests
  that are not found, after a rename or a broken parametrisation, don't fail by themselves.
* With several workers (pytest -n 2, as `make test` does) what builds networks or takes times has one worker for itself:
  those tests are one group. Those that must have the machine to themselves come last in it, when the other worker has
  long finished.

This file lies at the root because pytest asks only the conftest.py files above a test about that test.
"""

import contextlib
import os
import signal
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import pytest

# Who runs this in the background of a shell has SIGINT ignored, and so would have every program that a test starts, and
# then interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)

_SELECTIONS = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "failedfirst", "stepwise")


_WITH_NETWORKS = ("tests/e2e/", "lab/")
_ALONE = (
    *("tests/e2e/test_background.py", "tests/e2e/test_cleanup.py", "tests/e2e/test_load.py"),
    *("tests/e2e/test_measuring.py", "tests/e2e/test_monitor.py", "tests/e2e/test_sensitivity.py"),
    *("tests/e2e/test_slowdown.py", "tests/e2e/test_tcp_quality.py", "tests/unit/test_libbpf.py"),
)
_GROUP = "machine"


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that need the machine to themselves come last."""
    items.sort(key=lambda item: item.nodeid.startswith(_ALONE))  # stable: otherwise as they stand


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that build networks or take times go to one worker, one by one; of the others each file does."""
    from xdist.scheduler import LoadScopeScheduling  # only there with -n

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _GROUP if nodeid.startswith((*_WITH_NETWORKS, *_ALONE)) else nodeid.partition("::")[0]

    return Groups(config, log)


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.testsfailed:
        _require_all(session.config, len(session.items))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    """Each worker collects for itself, and knows only what it was given: this is where one counts."""
    _require_all(node.config, len(ids))


def _require_all(config: pytest.Config, found: int) -> None:
    minimum = int(config.getini("minimum_tests"))
    if found < minimum and is_full_run(config):
        raise pytest.UsageError(
            f"{found} tests were collected, of at least {minimum} (minimum_tests in pyproject.toml): "
            "find those that are gone, or, if they were removed on purpose, lower the number in the same commit."
        )
