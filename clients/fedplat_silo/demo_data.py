"""The Wisconsin breast-cancer data that scikit-learn carries, as CSV files of four hospitals of unequal size and class
balance. Run as a process: python -m fedplat_silo.demo_data FOLDER NAME...
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

# Of all benign and of all malignant records, the share that each hospital has seen.
BENIGN_SHARES = (0.50, 0.20, 0.22, 0.08)
MALIGNANT_SHARES = (0.25, 0.45, 0.12, 0.18)


def write_hospitals(folder: Path, names: Sequence[str], seed: int = 7) -> list[Path]:
    """One CSV a hospital; every record goes to exactly one."""
    data = load_breast_cancer()
    header = ["patient_id", *(name.replace(" ", "_") for name in data.feature_names), "diagnosis"]
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in names]
    for label, shares in ((1, BENIGN_SHARES), (0, MALIGNANT_SHARES)):
        records = rng.permutation(np.flatnonzero(data.target == label))
        cuts = np.round(np.cumsum(shares)[:-1] * len(records)).astype(int)
        for part, chosen in zip(parts, np.split(records, cuts), strict=True):
            part.extend(chosen.tolist())
    paths = [folder / f"{name}.csv" for name in names]
    for path, part in zip(paths, parts, strict=True):
        shuffled = enumerate(rng.permutation(part), start=1)
        rows = [[n, *data.data[i], "benign" if data.target[i] else "malignant"] for n, i in shuffled]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
    return paths


if __name__ == "__main__":
    write_hospitals(Path(sys.argv[1]), sys.argv[2:])
