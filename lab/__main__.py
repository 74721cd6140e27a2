"""``python -m lab``: works with any Python 3, and goes on in the project's own environment if this one lacks something.

Imports nothing but the standard library before it knows that the rest is there.
"""

import importlib.util
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENT = REPOSITORY / ".venv"
NEEDED = ("pydantic", "pyroute2", "rich", "ruamel.yaml", "typer")


def _missing():
    # type: () -> str
    """What this interpreter lacks; empty if nothing."""
    if sys.version_info < (3, 11):  # noqa: UP036 that is what this file is for
        return "Python 3.11 or newer"
    for name in NEEDED:
        package = name.partition(".")[0]
        if importlib.util.find_spec(package) is None or importlib.util.find_spec(name) is None:
            return "the Python package " + name
    return ""


def main():
    # type: () -> None
    """Run the command line, here or in the project's environment."""
    missing = _missing()
    if missing:
        python = str(ENVIRONMENT / "bin" / "python")
        if os.access(python, os.X_OK) and Path(sys.prefix).resolve() != ENVIRONMENT.resolve():
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
            os.execv(python, [python, "-m", "lab", *sys.argv[1:]])
        sys.stderr.write(f"lab: {missing} is missing: run `make setup` in {REPOSITORY}.\n")
        sys.exit(2)
    from lab.cli import app

    app(prog_name="python -m lab")


main()
