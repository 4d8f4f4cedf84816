"""The published JSON schema of a report: python -m fedplat.report.schema > docs/privacy-report.schema.json"""

from __future__ import annotations

import json
import sys

from pydantic import TypeAdapter

from fedplat.report.signing import AnyFile


def schema() -> dict[str, object]:
    """JSON Schema, draft 2020-12, of what `--format json` writes: at a silo, or at the server."""
    both: TypeAdapter[AnyFile] = TypeAdapter(AnyFile)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | both.json_schema(mode="serialization")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
