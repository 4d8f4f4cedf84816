"""Flower's internals stay in two rooms, so that an upgrade of Flower breaks there and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp")
ROOMS = ("server/fedplat_server/superlink/", "clients/fedplat_silo/supernode.py")


def flower_imports(path: Path) -> set[str]:
    """The modules of flwr that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name == "flwr" or name.startswith("flwr.")}


def test_only_two_rooms_import_flowers_internals() -> None:
    outside = {}
    for folder in ("fedplat", "server", "clients"):
        for path in (ROOT / folder).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            internals = {
                m for m in flower_imports(path) if not m.startswith(PUBLIC) or m.startswith("flwr.app.message.")
            }
            if internals and not name.startswith(ROOMS):
                outside[name] = sorted(internals)
    assert outside == {}
