"""What is wrong with a file, in words: pydantic's errors by the keys that stand in the file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fedplat.spec.base import WORDS

MAX_PROBLEMS = 20
_JSON_TYPES = {"bool", "int", "float", "str", "list", "dict", "NoneType"}


def explain(model: type[BaseModel], raw: object, error: ValidationError, prefix: str = "") -> list[str]:
    """One line a key: where it is, what is wrong, what was given. At most `MAX_PROBLEMS` lines, and a count."""
    said: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    found: list[dict[str, Any]] = [dict(p) for p in error.errors(include_url=False)]
    for problem in found:
        if problem["type"] == "too_short" and any(_inside(p["loc"], problem["loc"]) for p in found):
            continue  # the list counts as empty only because its items are wrong
        unknown = problem["type"] == "extra_forbidden"
        path, known = _walk(model, problem["loc"], unknown)
        where = _written(path, raw, prefix)
        said.setdefault(where, []).append(_suggestion(path[-1], known) if unknown else _message(problem, path))
        given[where] = "" if unknown else _given(problem.get("input"))
    lines = [f"{where}: {', or '.join(said[where])}{given[where]}".removeprefix(": ") for where in said]
    more = [f"and {len(lines) - MAX_PROBLEMS} more"] if len(lines) > MAX_PROBLEMS else []
    return lines[:MAX_PROBLEMS] + more


def _inside(loc: Sequence[object], outer: Sequence[object]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def _walk(model: type[BaseModel], loc: Sequence[str | int], unknown: bool) -> tuple[list[str | int], list[str]]:
    """The location as it stands in the file, and the keys known where it ends (its last part may be `unknown`).

    Tags of unions are part of pydantic's location, but of no file.
    """
    models, path = [model], list[str | int]()
    for part in loc[:-1] if unknown else loc:
        if isinstance(part, int):
            path.append(part)
        elif any(part in m.model_fields for m in models):
            path.append(part)
            models = [m for parent in models if part in parent.model_fields for m in _models_in(parent, part)]
        elif not models and part not in _JSON_TYPES and "[" not in part:
            path.append(part)
        else:
            models = [m for m in models if m.__name__.lower() == part] or models
    known = sorted({key for m in models for key in m.model_fields})
    return path + list(loc[-1:] if unknown else []), known


def _models_in(model: type[BaseModel], field: str) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    pending: list[Any] = [model.model_fields[field].annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        pending.extend(get_args(annotation))
    return found


def _written(path: Sequence[str | int], raw: object, prefix: str) -> str:
    """`task.options.features[3].scale (column 'age')`: a long list is easier searched than counted."""
    where, column = prefix, ""
    for part in path:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else part
        raw = _item(raw, part)
        if isinstance(part, int) and isinstance(raw, Mapping) and isinstance(raw.get("column"), str):
            column = f" (column {raw['column'][:80]!r})"
    return where + column


def _item(raw: object, part: str | int) -> object:
    if isinstance(raw, Mapping):
        return raw.get(part)
    if isinstance(raw, Sequence) and isinstance(part, int) and part < len(raw):
        item: object = raw[part]
        return item
    return None


def _message(problem: Mapping[str, Any], path: Sequence[str | int]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "missing":
        return "missing"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        tags = str(context.get("expected_tags", "'numeric', 'categorical'"))
        return f"{str(context['discriminator']).strip(chr(39))} must be {tags.replace(', ', ' or ')}"
    if kind in ("model_type", "model_attributes_type"):
        return f"must be a section, [{path[-1]}]"
    if kind == "string_pattern_mismatch":
        return f"must be {WORDS.get(context['pattern'], context['pattern'])}"
    said = str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    said = said.replace(" after validation", "").replace("tuple", "list").replace("Tuple", "list")
    return said.split(", unable to parse")[0]


def _given(value: object) -> str:
    if isinstance(value, str):
        return f" (given: {value[:80]!r})"
    return f" (given: {value})" if isinstance(value, int | float) else ""


def _suggestion(key: str | int, known: list[str]) -> str:
    nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return "no such key; " + (f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(known)}")
