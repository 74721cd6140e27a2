"""The wheel, installed into an environment of its own, which knows nothing of this clone, and used from there.

What the wheel asks for is linked into it from the environment of the tests, and nothing else: no network is needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from e2e.bench import FILE, bench
from lab.contenders.service import RAUTA, RunningService

ROOT = Path(__file__).parents[2]
COMMANDS = [
    name for name, module in (("rauta", "cli"), ("rautactl", "ctl")) if list((ROOT / "rauta").glob(f"{module}*"))
]
SECONDS = 120


def build(source: Path, kind: str, folder: Path) -> Path:
    argv = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", folder, source]
    subprocess.run(argv, check=True, capture_output=True, timeout=SECONDS)
    (built,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def required(distribution: metadata.Distribution, known: set[str]) -> Iterator[metadata.Distribution]:
    """What it asks for, and what these ask for, and so on."""
    for text in distribution.requires or ():
        requirement = Requirement(text)
        if requirement.name in known or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        known.add(requirement.name)
        found = metadata.distribution(requirement.name)
        assert found.version in requirement.specifier
        yield found
        yield from required(found, known)


def link(distribution: metadata.Distribution, site: Path) -> None:
    """Into another environment."""
    for name in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
        if not (site / name).exists():
            (site / name).symlink_to(Path(str(distribution.locate_file(name))))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder."""
    folder = tmp_path_factory.mktemp("installed")
    wheel, made = build(ROOT, "wheel", folder), folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True, timeout=SECONDS)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        made / "bin/python",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
    ]
    subprocess.run([*pip, wheel], check=True, timeout=SECONDS)
    (site,) = made.glob("lib/python*/site-packages")
    (own,) = metadata.distributions(path=[str(site)], name="rauta")
    for distribution in required(own, set()):
        link(distribution, site)
    return made


def output(environment: Path, *argv: str | Path, returncode: int = 0) -> str:
    """Of a command there, in another folder, and without what this process was started with."""
    argv = (environment / "bin" / argv[0], *argv[1:])
    bare = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", env=bare, timeout=SECONDS)
    assert done.returncode == returncode, done.stderr
    return done.stdout + done.stderr


def test_it_is_the_installed_one_and_complete(environment: Path) -> None:
    where = output(environment, "python", "-c", "import rauta; print(rauta.__file__)")
    assert Path(where.strip()).is_relative_to(environment)
    assert (environment / "share/rauta/systemd/rauta.service").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_there(environment: Path, command: str) -> None:
    assert "Usage" in output(environment, command, "--help")


def test_it_says_its_version(environment: Path) -> None:
    assert output(environment, "rauta", "--version") == f"rauta {metadata.version('rauta')}\n"


def test_it_checks_configurations_and_says_what_they_are(environment: Path, tmp_path: Path) -> None:
    assert "no mistakes" in output(environment, "rauta", "check", FILE.with_name("routing.yaml"))
    assert json.loads(output(environment, "rauta", "schema"))["title"] == "RAUTA's configuration"
    broken = tmp_path / "broken.yaml"
    broken.write_text("version: 2\n")
    assert "broken.yaml:1: version" in output(environment, "rauta", "check", broken, returncode=1)


def test_it_routes_a_real_request(environment: Path, tmp_path: Path) -> None:
    with bench("rauta-run", tmp_path) as one:
        service = one.running
        assert isinstance(service, RunningService)
        for part in (*service.routers, *service.agents.values()):
            assert tuple(part.argv[: len(RAUTA)]) == RAUTA
            part.kill()
            installed = ["env", "-u", "PYTHONPATH", "-C", "/", str(environment / "bin/rauta")]
            part.argv = [*installed, *part.argv[len(RAUTA) :]]
            part.start()
        before = service.counters()["requests_routed"]
        with one.connected() as conversation:
            assert conversation.ask("/web").status == 200
        assert service.counters()["requests_routed"] == before + 1


# ---- the sdist ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that an sdist is."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, "sdist", folder)) as archive:
        archive.extractall(folder, filter="data")
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def test_an_sdist_becomes_the_same_wheel(unpacked: Path, environment: Path, tmp_path: Path) -> None:
    (wheel,) = environment.parent.glob("*.whl")
    assert build(unpacked, "wheel", tmp_path).read_bytes() == wheel.read_bytes()


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_nothing_is_built_without_compiled_programs(unpacked: Path, kind: str, tmp_path: Path) -> None:
    (compiled,) = unpacked.glob("rauta/objects/agent.bpf.o")
    kept = compiled.rename(tmp_path / compiled.name)
    try:
        with pytest.raises(subprocess.CalledProcessError) as caught:
            build(unpacked, kind, tmp_path)
        assert "Compile first: make bpf" in (caught.value.stdout + caught.value.stderr).decode()
    finally:
        kept.rename(compiled)
