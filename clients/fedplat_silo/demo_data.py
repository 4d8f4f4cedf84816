"""The Wisconsin breast-cancer data that scikit-learn carries, as CSV files of four hospitals of unequal size and class
balance. Run as a process: python -m fedplat_silo.demo_data FOLDER [NAME...]
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

from fedplat.demo import HOSPITALS

# Of all benign and of all malignant records, the share that each hospital has seen.
BENIGN_SHARES = (0.50, 0.20, 0.22, 0.08)
MALIGNANT_SHARES = (0.25, 0.45, 0.12, 0.18)


def write_hospitals(folder: Path, names: Sequence[str] = HOSPITALS, seed: int = 7) -> list[Path]:
    """One CSV for each of these; every record belongs to exactly one of the four, whichever are written."""
    data = load_breast_cancer()
    header = ["patient_id", *(name.replace(" ", "_") for name in data.feature_names), "diagnosis"]
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in HOSPITALS]
    for label, shares in ((1, BENIGN_SHARES), (0, MALIGNANT_SHARES)):
        records = rng.permutation(np.flatnonzero(data.target == label))
        cuts = np.round(np.cumsum(shares)[:-1] * len(records)).astype(int)
        for part, chosen in zip(parts, np.split(records, cuts), strict=True):
            part.extend(chosen.tolist())
    shuffled = {name: rng.permutation(part) for name, part in zip(HOSPITALS, parts, strict=True)}
    paths = [folder / f"{name}.csv" for name in names]
    for path, name in zip(paths, names, strict=True):
        numbered = enumerate(shuffled[name], start=1)
        rows = [[n, *data.data[i], "benign" if data.target[i] else "malignant"] for n, i in numbered]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
    return paths


if __name__ == "__main__":
    write_hospitals(Path(sys.argv[1]), sys.argv[2:] or HOSPITALS)
