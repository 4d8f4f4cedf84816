"""The silo's datasets by name: `--data NAME=PATH` is checked at the door and remembered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from fedplat.durable import write_atomic
from fedplat.errors import DataError
from fedplat.home import SiloHome
from fedplat_silo.toml import read_toml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_USAGE = "Write --data NAME=PATH, for example --data heart=/data/heart.csv."


def parse_dataset(argument: str) -> tuple[str, Path]:
    """NAME=PATH, the path made absolute. Raises DataError for a bad name or a path where nothing is."""
    name, equals, text = argument.partition("=")
    if not equals or not _NAME.fullmatch(name) or not text:
        raise DataError(f"{argument!r} does not name a dataset", hint=_USAGE)
    path = Path(text).expanduser().absolute()
    if not path.exists() or not _is_utf8(path):
        raise DataError(
            f"dataset {name}: there is nothing at {str(path)!a}",
            hint="Give the path of a file or folder, in UTF-8.",
        )
    return name, path


def load_datasets(file: Path) -> dict[str, Path]:
    """What datasets.toml remembers. Raises DataError if it is broken."""
    if not file.exists():
        return {}
    hint = "Mend the file, or remove it and name the datasets again with --data."
    known = read_toml(file, DataError, hint)
    if not all(isinstance(path, str) for path in known.values()):
        raise DataError(f'{file} cannot be read: every line must be name = "path"', hint=hint)
    return {name: Path(str(path)) for name, path in known.items()}


def path_of(home: SiloHome, dataset: str) -> Path:
    """Where a silo's dataset lies. Raises DataError for one that nobody has named."""
    path = load_datasets(home.datasets).get(dataset)
    if path is None:
        raise DataError(
            f"silo {home.name} has no dataset {dataset!r}",
            hint=f"Name its file first: fedplat client join --silo {home.name} --data {dataset}=PATH",
        )
    return path


def remember_datasets(file: Path, arguments: Iterable[str]) -> dict[str, Path]:
    """Adds `--data` arguments to datasets.toml and returns all that is known then. Raises DataError."""
    known = load_datasets(file)
    added = dict(map(parse_dataset, arguments))
    if added and known | added != known:
        write_atomic(file, _to_toml(known | added).encode())
    return known | added


def _to_toml(datasets: Mapping[str, Path]) -> str:
    lines = (f"{_quote(name)} = {_quote(str(path))}\n" for name, path in sorted(datasets.items()))
    return "# Written by `fedplat client join --data NAME=PATH`.\n" + "".join(lines)


def _quote(text: str) -> str:
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
