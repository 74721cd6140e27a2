"""The command line, as a process of its own: what is printed where, exit codes, and what is not imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer

from rauta.cli import COMMANDS, main
from rauta.files.schema import json_schema

ROOT = Path(__file__).parents[2]
SHOP = str(ROOT / "scenarios/routing/shop.yaml")
BROKEN = "version: 1\nencapsulation: {source: 198.19.0.0/24}\nflows: 1\nvips: []\nclusters: []\nvip: []\n"
DOUBTFUL = Path(SHOP).read_text() + "  - {name: old, backends: []}\n"


def rauta(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs it, and asserts its exit code, and that it never shows a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "rauta", *arguments],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def broken(tmp_path: Path) -> str:
    file = tmp_path / "broken.yaml"
    file.write_text(BROKEN)
    return str(file)


@pytest.fixture
def doubtful(tmp_path: Path) -> str:
    file = tmp_path / "doubtful.yaml"
    file.write_text(DOUBTFUL)
    return str(file)


# ---- usage ----------------------------------------------------------------------------------------------


def test_the_version_is_the_packages() -> None:
    assert rauta("--version").stdout == f"rauta {metadata.version('rauta')}\n"


def test_help_lists_every_command() -> None:
    text = rauta("--help").stdout
    assert [name for name in COMMANDS if f"\n  {name} " not in text] == []


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["check"], ["explain", SHOP], ["check", "--nonsense", SHOP]], ids=str
)
def test_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert "Usage: rauta" in rauta(*arguments, code=2).stderr


@pytest.mark.parametrize("command", [["check"], ["explain"]], ids=str)
def test_a_file_that_is_not_there_is_exit_code_2(command: list[str]) -> None:
    done = rauta(*command, "/nowhere.yaml", *(["GET /"] if command == ["explain"] else []), code=2)
    assert done.stderr == (
        "rauta: reading /nowhere.yaml: No such file or directory\nName an existing file that you may read.\n"
    )
    assert done.stdout == ""


def test_only_what_a_command_needs_is_imported() -> None:
    """`rauta run` stays in memory: what prints tables, and other commands, must not stay with it."""
    script = (
        "import sys; from rauta import cli; words = sys.argv[1:]\n"
        "try: cli.main(words)\nexcept SystemExit: pass\n"
        "names = ('rich', 'rauta.bpf', 'rauta.config')\n"
        "print(*sorted(m for m in sys.modules if m in names or m.startswith('rauta.com')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "check", SHOP], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "rauta.commands rauta.commands.check rauta.config"


def test_nothing_is_imported_to_say_the_version() -> None:
    script = (
        "import sys; from rauta import cli\ntry: cli.main(['--version'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    version, modules = done.stdout.splitlines()
    assert version.startswith("rauta ")
    assert {"rauta.config", "rauta.commands", "rich"}.isdisjoint(modules.split())


def boom() -> None:
    """A command with a mistake of its own."""
    raise ZeroDivisionError


def test_a_mistake_of_its_own_is_no_failed_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "boom", f"{__name__}:boom")
    with pytest.raises(SystemExit) as caught:
        main(["boom"])
    assert caught.value.code == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


group = typer.Typer()


@group.command()
def new(file: str) -> None:
    typer.echo(f"new {file}")


@group.command()
def old() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("words", "said", "code"), [(["new", "x"], "new x\n", 0), (["old"], "", 130)], ids=str)
def test_commands_may_have_commands_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str, code: int
) -> None:
    monkeypatch.setitem(COMMANDS, "some", f"{__name__}:group")
    with pytest.raises(SystemExit) as caught:
        main(["some", *words])
    assert caught.value.code == code
    assert capsys.readouterr().out.startswith(said)


# ---- check ----------------------------------------------------------------------------------------------


def test_check_says_what_a_good_file_has() -> None:
    done = rauta("check", SHOP)
    assert done.stdout == f"{SHOP}: no mistakes: 1 VIP, 2 routes, 0 hosts, 2 clusters, 3 backends\n"
    assert done.stderr == ""


def test_check_reports_all_mistakes_of_all_files(broken: str) -> None:
    done = rauta("check", broken, SHOP, code=1)
    flows, unknown, count = done.stderr.splitlines()
    assert flows == f"{broken}:3: flows: 1 is out of range (allowed: 1024 to 16777216)"
    assert unknown.startswith(f"{broken}:6: vip: unknown field, did you mean 'vips'? (allowed: version, ")
    assert count == f"{broken}: 2 mistakes"
    assert done.stdout.startswith(f"{SHOP}: no mistakes")


def test_check_warns_and_only_strictly_counts_it(doubtful: str) -> None:
    line = len(DOUBTFUL.splitlines())
    for arguments, code in (([], 0), (["--strict"], 1)):
        done = rauta("check", doubtful, *arguments, code=code)
        warning = "clusters[2].name: no route leads to old (add one, or remove the cluster)"
        assert done.stderr == f"{doubtful}:{line}: warning: {warning}\n"
        assert done.stdout.startswith(f"{doubtful}: no mistakes, 1 warning: 1 VIP, ")


def test_check_says_it_as_json(broken: str, doubtful: str) -> None:
    first, second = json.loads(rauta("check", "--json", broken, doubtful, code=1).stdout)["files"]
    assert (first["file"], first["valid"], first["summary"], first["warnings"]) == (broken, False, None, [])
    assert first["mistakes"][0] == {
        "line": 3, "field": "flows", "problem": "1 is out of range", "allowed": "1024 to 16777216"
    }  # fmt: skip
    assert (second["valid"], second["mistakes"]) == (True, [])
    assert second["summary"] == {"vips": 1, "routes": 2, "hosts": 0, "clusters": 3, "backends": 3, "drained": 0}
    (warning,) = second["warnings"]
    assert (warning["field"], warning["problem"]) == ("clusters[2].name", "no route leads to old")


def test_check_counts_drained_backends(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(Path(SHOP).read_text().replace("198.18.0.12, port: 8080", "198.18.0.12, port: 8080, weight: 0"))
    assert rauta("check", str(file)).stdout.endswith("3 backends (1 drained)\n")


# ---- explain --------------------------------------------------------------------------------------------


def test_explain_says_the_decision_first() -> None:
    lines = rauta("explain", SHOP, "GET http://shop.test/?x").stdout.splitlines()
    assert lines == [
        "GET http://shop.test/?x → route vips[0].routes[1] in line 12 (prefix /) → cluster web → web-1 50 %, "
        "web-2 50 %",
        "  VIP: shop (198.18.100.80:80)",
        "  host: shop.test; the routes that count are those for any host",
        "  path: /",
        "  the query '?x' is not compared",
        "  routes, as they are looked for:",
        "    no match  vips[0].routes[0] in line 11: the path is not /api or below",
        "    taken     vips[0].routes[1] in line 12: prefix /",
    ]


def test_explain_says_what_a_request_gets_that_is_not_routed() -> None:
    done = rauta("explain", SHOP, "GET /[/]x", "-H", "Host: a", "-H", "Transfer-Encoding: chunked")
    first, *_ = done.stdout.splitlines()
    assert first == (
        "GET /[/]x → 411 (TX_LENGTH_REQUIRED): Transfer-Encoding: where the next request starts cannot be known"
    )


def test_explain_shows_some_of_many_routes_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    more = "".join(f"      - {{prefix: /p{number}, cluster: web}}\n" for number in range(30))
    file.write_text(Path(SHOP).read_text().replace("    routes:\n", f"    routes:\n{more}"))
    lines = rauta("explain", str(file), "GET http://a/x").stdout.splitlines()
    assert lines[-1] == "    and 11 more that do not match; --json has them"
    assert any(line.startswith("    taken ") for line in lines)
    assert len(json.loads(rauta("explain", str(file), "GET http://a/x", "--json").stdout)["candidates"]) == 32


def test_explain_says_everything_as_json() -> None:
    said = json.loads(rauta("explain", "--json", SHOP, "GET http://shop.test/api").stdout)
    assert (said["kind"], said["verdict"], said["status"], said["cluster"]) == ("route", "ROUTED_FIRST", None, "api")
    assert said["route"] == {
        "number": 0, "field": "vips[0].routes[0]", "line": 11, "route": {"prefix": "/api", "cluster": "api"}
    }  # fmt: skip
    assert said["backends"] == [{"name": "api-1", "address": "198.18.0.21", "port": 8080, "weight": 1, "share": 1.0}]
    assert [one["outcome"] for one in said["candidates"]] == ["taken", "behind"]
    assert said["request"]["host"] == "shop.test"


def test_explain_takes_and_shows_any_bytes_on_any_terminal() -> None:
    argv = [os.fsencode(sys.executable), b"-m", b"rauta", b"explain", os.fsencode(SHOP), b"GET http://a/\xff"]
    done = subprocess.run(
        argv, capture_output=True, check=False, timeout=60, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    first = "GET http://a/\\udcff \\u2192 400 (TX_BAD_REQUEST): the path holds '\\xff'"
    assert done.stdout.decode().splitlines()[0] == first


def test_explain_tells_mistakes_of_the_file(broken: str) -> None:
    done = rauta("explain", broken, "GET /", code=1)
    assert done.stderr.startswith(f"rauta: reading {broken}: it has 2 mistakes\n{broken}:3: flows: ")


# ---- schema ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=str)
def test_schema_prints_the_schema(arguments: list[str]) -> None:
    assert json.loads(rauta("schema", *arguments).stdout) == json_schema()
