"""What the repository promises about itself: what is shipped, which ways lead in, what may depend on what."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def output_of(*argv: str) -> str:
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.fixture(scope="module")
def sources() -> dict[Path, str]:
    """Every text file that git tracks or would track, by its path from the root."""
    git = ("git", "-c", "safe.directory=*")  # root tests other people's clones too
    listing = output_of(*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    files = [Path(name) for name in listing if name and (ROOT / name).is_file()]
    texts = {}
    for file in files:
        try:
            texts[file] = (ROOT / file).read_text()
        except UnicodeDecodeError:
            continue  # a picture, a recorded sample
    assert Path("pyproject.toml") in texts
    return texts


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    output_of(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (built,) = folder.iterdir()
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def requirements() -> list[str]:
    extras = PROJECT["optional-dependencies"].values()
    return [*PROJECT["dependencies"], *(requirement for extra in extras for requirement in extra)]


def name_of(requirement: str) -> str:
    """A distribution's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def imported_modules(text: str) -> set[str]:
    """The top-level names that a Python source imports."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_the_wheel_holds_rauta_and_nothing_else(wheel: list[str]) -> None:
    named = f"rauta-{PROJECT['version']}"
    assert {name.split("/")[0] for name in wheel} == {"rauta", f"{named}.dist-info", f"{named}.data"}
    shared = {name.removeprefix(f"{named}.data/data/share/") for name in wheel if ".data/" in name}
    units = {f"rauta/systemd/{path.name}" for path in (ROOT / "deploy/systemd").iterdir()}
    assert shared == units | {"doc/rauta/running.md"}


def test_the_wheel_holds_the_programs_compiled_and_typed(wheel: list[str]) -> None:
    programs = {f"rauta/objects/{source.stem}.o" for source in (ROOT / "bpf").glob("*.bpf.c")}
    assert programs
    assert {name for name in wheel if name.startswith("rauta/objects/")} == programs
    assert "rauta/py.typed" in wheel


def test_the_wheel_carries_both_licences(wheel: list[str]) -> None:
    texts = {Path(name).name for name in wheel if "/licenses/" in name}
    assert texts == {"LICENSE", "MIT.txt", "GPL-2.0-only.txt"}


def test_rauta_knows_nothing_of_the_lab(sources: dict[Path, str]) -> None:
    control_plane = {file: text for file, text in sources.items() if file.parts[0] == "rauta" and file.suffix == ".py"}
    assert control_plane
    assert [file for file, text in control_plane.items() if {"lab", "tests"} & imported_modules(text)] == []


def test_rauta_needs_only_what_the_wheel_asks_for(sources: dict[Path, str]) -> None:
    modules = {"pydantic": {"pydantic", "pydantic_core"}, "ruamel-yaml": {"ruamel"}}
    required = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    allowed = {"rauta"}.union(*(modules.get(name, {name}) for name in required))
    used = {
        name: file
        for file, text in sources.items()
        if file.parts[0] == "rauta" and file.suffix == ".py"
        for name in imported_modules(text) - sys.stdlib_module_names
    }
    extra = {
        "opentelemetry": Path("rauta/tracing/spans.py")
    }  # of the extra `traces`, imported when there are spans to be sent
    assert {name: file for name, file in used.items() if name not in allowed} == extra


def test_every_requirement_has_a_tested_version() -> None:
    lines = (ROOT / "scripts/constraints.txt").read_text().splitlines()
    pinned = {name_of(line) for line in lines if re.fullmatch(r"[\w.-]+==[\w.+!]+", line)}
    assert {name_of(requirement) for requirement in requirements()} - pinned == set()


def test_make_lists_every_way_in() -> None:
    text = (ROOT / "Makefile").read_text()
    entrances = set(re.findall(r"^\.PHONY: (\S+)$", text.split("# ---- steps")[0], re.MULTILINE))
    ways = {"help", "demo", "test", "test-long", "fuzz", "mutants", "comparison", "setup", "bpf", "lint", "clean"}
    assert entrances == ways
    assert output_of("make") == output_of("make", "help")
    assert set(re.findall(r"^  make (\S+) +\S", output_of("make", "help"), re.MULTILINE)) == entrances


def test_programs_for_the_kernel_are_gpl_and_say_so(sources: dict[Path, str]) -> None:
    code = {file: text for file, text in sources.items() if file.suffix in {".c", ".h"}}
    tools = {file for file in code if file.parent == Path("lab/tools")}  # for this side of the system calls
    assert tools
    licences = {file: "MIT" if file in tools else "GPL-2.0-only" for file in code}
    wrong = [
        file for file, text in code.items() if f"SPDX-License-Identifier: {licences[file]} " not in text[:200] + " "
    ]
    assert [str(file) for file in wrong if f"{licences[file]}\n" not in code[file][:200]] == []


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"--(extra-)?index-ur[l]|--find-link[s]", "packages come from where the machine's pip finds them"),
        (r"(?<![\w.])/(home|root|work)/\w", "paths of one machine mean nothing on another"),
        (r"\bT[O]DO\b|\bF[I]XME\b|\bX[X]X\b", "what is not done is not in the tree"),
    ],
)
def test_no_source_contains(sources: dict[Path, str], pattern: str, why: str) -> None:
    own = {file: text for file, text in sources.items() if file.parts[0] != "LICENSES"}
    assert [str(file) for file, text in own.items() if re.search(pattern, text)] == [], why
