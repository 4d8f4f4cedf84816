"""Who may load what: seen in fresh processes, for an import cannot be undone in this one."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [ROOT / "fedplat", ROOT / "server" / "fedplat_server", ROOT / "clients" / "fedplat_silo"]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(str(p.parent) for p in PACKAGES)}
SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))

HEAVY = {"torch", "opacus", "sqlalchemy", "alembic", "sklearn", "pyarrow", "starlette", "uvicorn", "dash"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after `code`."""
    report = "import json, sys; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{code}\n{report}"],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_probe_sees_what_is_loaded() -> None:
    assert "sqlite3" in loaded_by("import sqlite3")
    assert not HEAVY & loaded_by("pass")


def test_the_core_loads_nothing_heavy() -> None:
    loaded = loaded_by("import fedplat.spec, fedplat.spec.template, fedplat.wire, fedplat.metrics, fedplat.wire.http")
    assert "fedplat" in loaded
    assert not loaded & (HEAVY | {"fedplat_server", "fedplat_silo"})


def test_a_spec_is_read_without_flower() -> None:
    assert not {"flwr", "grpc"} & loaded_by("import fedplat.spec, fedplat.metrics, fedplat.params, fedplat.reasons")


def test_help_loads_neither_side() -> None:
    """Also when the package is not installed, so that its entry points are read from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sides = {entry.partition(":")[0] for entry in project["entry-points"]["fedplat.commands"].values()}
    help_text = "sys.argv = ['fedplat', '--help']\ntry: fedplat.cli.main()\nexcept SystemExit: pass"
    loaded = loaded_by(f"import sys, fedplat.cli, {', '.join(sorted(sides))}\n{help_text}")
    assert "fedplat" in loaded
    assert not loaded & (HEAVY | {"flwr", "grpc", "pydantic"})


def test_import_contracts_hold() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [tool, "--config", ROOT / "pyproject.toml", "--no-cache"],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def forbidden_in(tree: ast.AST) -> Iterator[str]:
    """What a source file must not hold, and where."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            yield from (f"line {node.lineno}: {n}" for n in names if n.partition(".")[0] in FORBIDDEN_MODULES)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: {node.func.id}()"
            for keyword in node.keywords:
                true = isinstance(keyword.value, ast.Constant) and keyword.value.value in (True, 1)
                if (keyword.arg, true) in (("shell", True), ("allow_pickle", True)):
                    yield f"line {node.lineno}: {keyword.arg}=True"
                if keyword.arg == "weights_only" and not true:
                    yield f"line {node.lineno}: weights_only is not True"
            if ast.unparse(node.func) == "torch.load" and "weights_only" not in {k.arg for k in node.keywords}:
                yield f"line {node.lineno}: torch.load without weights_only=True"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_code_comes_from_data(path: Path) -> None:
    assert list(forbidden_in(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle.x",
        "eval(x)",
        "exec(x)",
        "run(x, shell=True)",
        "np.load(x, allow_pickle=True)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
    ],
)
def test_the_scan_finds_what_it_looks_for(source: str) -> None:
    assert list(forbidden_in(ast.parse(source)))


def test_flower_telemetry_is_never_switched_on() -> None:
    for path in SOURCES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if "TELEMETRY_ENABLED" in line:
                assert "0" in line, f"{path.relative_to(ROOT)}, line {number}: {line.strip()}"


def test_every_entry_point_is_there() -> None:
    """As pyproject.toml says them, whatever the installed package said when it was installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = project["entry-points"]
    assert set(groups) == {"fedplat.commands", "fedplat.doctor", "fedplat.reports", "fedplat.tasks"}
    for name, value in [entry for group in groups.values() for entry in group.items()]:
        assert EntryPoint(name, value, "").load() is not None
    for parent in (name.rpartition(".")[0] for name in groups["fedplat.commands"] if "." in name):
        assert parent in groups["fedplat.commands"], "the group comes first"
