"""A report as a file, and back from one."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping

from fedplat.errors import IdentityError, NotFoundError
from fedplat.report import facts
from fedplat.report.document import Document
from fedplat.report.federation import facts as federation_facts
from fedplat.report.federation.model import FederationFile
from fedplat.report.federation.table import federation_csv
from fedplat.report.html import as_html, data_inside
from fedplat.report.markdown import as_markdown
from fedplat.report.opendp import as_opendp
from fedplat.report.signing import AnyFile, canonical, read_report
from fedplat.report.table import as_csv


def document_of(file: AnyFile) -> Document:
    """As it is read."""
    if isinstance(file, FederationFile):
        return federation_facts.document(file, canonical(file))
    return facts.document(file, canonical(file))


def as_json(file: AnyFile) -> str:
    """Indented; validates against docs/privacy-report.schema.json."""
    return indented(file.model_dump(mode="json"))


def indented(value: object) -> str:
    """JSON for people and programs."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_pdf(document: Document) -> bytes:
    """Pages. Raises NotFoundError where reportlab is not installed; a server's image has no room for it."""
    try:
        from fedplat.report import pdf  # takes a moment to load
    except ModuleNotFoundError:
        hint = "pip install 'fedplat[pdf]' brings it; --format html prints well, too."
        raise NotFoundError("a PDF needs reportlab, which is not installed", hint=hint) from None
    return pdf.as_pdf(document)


_WRITERS: Mapping[str, Callable[[AnyFile], str]] = {
    "html": lambda file: as_html(document_of(file)),
    "json": as_json,
    "md": lambda file: as_markdown(document_of(file)),
    "csv": lambda file: federation_csv(file) if isinstance(file, FederationFile) else as_csv(file),
    "opendp": lambda file: indented(as_opendp(file)),
}
FORMATS = (*_WRITERS, "pdf")


def render(file: AnyFile, form: str) -> str:
    """The same report always gives the same text; `form` is one of FORMATS but pdf."""
    return _WRITERS[form](file)


def written(file: AnyFile, form: str) -> bytes:
    """The file's bytes; `form` is one of FORMATS."""
    return as_pdf(document_of(file)) if form == "pdf" else render(file, form).encode()


def data_of(text: str) -> str:
    """The report inside an HTML file, as JSON. Raises WireError; IdentityError if the page says anything else."""
    data = data_inside(text)
    if not hmac.compare_digest(render(read_report(data), "html").encode(), text.encode("utf-8", "surrogatepass")):
        raise IdentityError(
            "the page does not say what the data inside it say",
            hint="It was altered, or made by another version of fedplat: verify the JSON of the same report.",
        )
    return data
