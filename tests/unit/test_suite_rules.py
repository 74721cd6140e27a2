"""The rules of the root conftest.py, each tried on a small project of its own, with the real pytest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPPED_TEST = "import pytest\ndef test_one(): pytest.skip('no nginx')\n"
SKIPPED_MODULE = "import pytest\npytest.skip('no nginx', allow_module_level=True)\n"
EXPECTED_FAILURE = "import pytest\n@pytest.mark.xfail\ndef test_one(): assert False\n"


class Project:
    """A folder with this repository's conftest.py, and a module of tests in `lab/`, which the rules must reach too."""

    def __init__(self, folder: Path, tests: str, minimum: int = 0) -> None:
        self.folder = folder
        (folder / "lab").mkdir()
        (folder / "lab/test_it.py").write_text(tests)
        (folder / "pytest.ini").write_text(f"[pytest]\ntestpaths = lab\nminimum_tests = {minimum}\n")
        shutil.copy(ROOT / "conftest.py", folder)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if name not in {"CI", "RAUTA_CI"}}
        argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(
            argv, cwd=self.folder, env=inherited | environment, capture_output=True, text=True, check=False, timeout=60
        )


@pytest.mark.parametrize("tests", [SKIPPED_TEST, SKIPPED_MODULE], ids=["test", "module"])
@pytest.mark.parametrize("environment", [{"CI": "true"}, {"CI": "1"}, {"RAUTA_CI": "1"}], ids=str)
def test_in_ci_a_skip_fails_and_keeps_its_reason(tmp_path: Path, tests: str, environment: dict[str, str]) -> None:
    done = Project(tmp_path, tests).run(**environment)
    assert done.returncode not in {0, 5}
    assert "no nginx" in done.stdout
    assert "In CI no test may be skipped" in done.stdout


@pytest.mark.parametrize("environment", [{}, {"CI": "false"}, {"CI": ""}], ids=str)
def test_elsewhere_a_skip_is_a_skip(tmp_path: Path, environment: dict[str, str]) -> None:
    done = Project(tmp_path, SKIPPED_TEST).run(**environment)
    assert done.returncode == 0
    assert "1 skipped" in done.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    assert Project(tmp_path, EXPECTED_FAILURE).run(CI="true").returncode == 0


def test_a_full_run_that_lost_tests_is_refused(tmp_path: Path) -> None:
    done = Project(tmp_path, "def test_one(): pass\n", minimum=2).run()
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "1 tests were collected, of at least 2" in done.stdout + done.stderr


def test_a_full_run_with_all_its_tests_passes(tmp_path: Path) -> None:
    assert Project(tmp_path, "def test_one(): pass\n", minimum=1).run().returncode == 0


@pytest.mark.parametrize(
    "selection", [["lab"], ["-k", "one"], ["lab/test_it.py::test_one"], ["-m", "not x"]], ids=" ".join
)
def test_a_part_of_the_tests_may_be_few(tmp_path: Path, selection: list[str]) -> None:
    assert Project(tmp_path, "def test_one(): pass\n", minimum=2).run(*selection).returncode == 0


def test_a_module_that_does_not_load_is_shown_as_such(tmp_path: Path) -> None:
    done = Project(tmp_path, "import nothing_of_this_name\n", minimum=2).run()
    assert done.returncode not in {0, 5}
    assert "nothing_of_this_name" in done.stdout
