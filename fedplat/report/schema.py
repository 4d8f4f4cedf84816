"""The published JSON schema of a report: python -m fedplat.report.schema > docs/privacy-report.schema.json"""

from __future__ import annotations

import json
import sys

from fedplat.report.model import ReportFile


def schema() -> dict[str, object]:
    """JSON Schema, draft 2020-12, of what `--format json` writes."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | ReportFile.model_json_schema(
        mode="serialization"
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
