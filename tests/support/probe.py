"""Installs the probe task into a folder, as pip would, for the PYTHONPATH of one silo."""

from __future__ import annotations

import os
from pathlib import Path

SOURCE = Path(__file__).with_name("probe_task.py")


def install_probe(folder: Path, version: str = "1.0") -> dict[str, str]:
    """The environment in which the task `probe` of that version is installed."""
    package = folder / "probe_task"
    info = folder / f"probe_task-{version}.dist-info"
    for made in (package, info):
        made.mkdir(parents=True)
    (package / "__init__.py").write_text(f'{SOURCE.read_text()}\nVERSION = "{version}"\n')
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: probe-task\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[fedplat.tasks]\nprobe = probe_task:ProbeTask\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}
