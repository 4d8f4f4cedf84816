"""A report as a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from fedplat.report.html import as_html
from fedplat.report.markdown import as_markdown
from fedplat.report.model import ReportFile
from fedplat.report.table import as_csv


def as_json(file: ReportFile) -> str:
    """Indented; validates against docs/privacy-report.schema.json."""
    return json.dumps(file.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


_WRITERS: Mapping[str, Callable[[ReportFile], str]] = {
    "html": as_html,
    "json": as_json,
    "md": as_markdown,
    "csv": as_csv,
}
FORMATS = tuple(_WRITERS)


def render(file: ReportFile, form: str) -> str:
    """The same report always gives the same text; `form` is one of FORMATS."""
    return _WRITERS[form](file)
