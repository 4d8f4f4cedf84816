"""TOML in, `RunSpec` out, or an error that says which key is wrong and how."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from fedplat.errors import SpecError
from fedplat.spec.explain import explain
from fedplat.spec.model import RunSpec
from fedplat.spec.tabular import TabularOptions

Model = TypeVar("Model", bound=BaseModel)

# Options of tasks that every installation has are checked where the spec is written;
# other tasks are installed at the silos alone, and checked there.
BUILT_IN_OPTIONS: dict[str, type[BaseModel]] = {"tabular": TabularOptions}
_HINT = "fedplat run init --task tabular prints a spec with every key explained"


def load_spec(path: Path) -> RunSpec:
    """Read and check a spec file; SpecError says what is wrong and names the nearest known key."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"cannot read the run spec {path}: {error.strerror}", hint=_HINT) from None
    except UnicodeDecodeError:
        raise SpecError(f"the run spec {path} is not UTF-8 text", hint=_HINT) from None
    return parse_spec(text, source=str(path))


def parse_spec(text: str, *, source: str = "run spec") -> RunSpec:
    """Check a spec given as TOML text."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: also numbers of 5000 digits
        raise SpecError(f"{source} is not TOML: {error}", hint=_HINT) from None
    spec = validate(RunSpec, raw, source)
    options = BUILT_IN_OPTIONS.get(spec.task.name)
    if options is not None:
        checked = validate(options, spec.task.options, source, prefix="task.options")
        if isinstance(checked, TabularOptions):
            _check_class_weights(spec, checked, source)
        section = spec.task.model_copy(update={"options": checked.model_dump(mode="json", exclude_none=True)})
        spec = spec.model_copy(update={"task": section})
    return spec


def _check_class_weights(spec: RunSpec, options: TabularOptions, source: str) -> None:
    given, classes = len(spec.training.class_weights), options.target.num_classes
    if given not in (0, classes):
        raise SpecError(
            f"{source}: training.class_weights has {given} weights, but the target has {classes} categories",
            hint="give one weight a category of task.options.target, in the same order, or none",
        )


def validate(model: type[Model], raw: object, source: str, prefix: str = "") -> Model:
    """`raw` as a `model`, or a SpecError with every problem on a line of its own."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = explain(model, raw, error, prefix)
        start = f"{source}: " if len(lines) == 1 else f"{source}:\n  "
        raise SpecError(start + "\n  ".join(lines), hint=_HINT) from None
