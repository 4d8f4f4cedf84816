"""What every part of a spec has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,62}$"
SILO_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
DIGEST_OR_EMPTY = r"^([0-9a-f]{64})?$"
# Text that is shown to people: no control characters or line breaks, nothing that changes the reading direction.
# Written so that every language's expressions take it: it is in the published schema of reports.
PLAIN = r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"

# The patterns in words, for errors.
WORDS = {
    NAME: "letters, digits, '_', '-' and '.', at most 63, the first a letter or digit",
    SILO_NAME: "lower-case letters, digits and '-', at most 63, the first not '-'",
    DIGEST_OR_EMPTY: "a SHA-256 in hexadecimal, or empty",
    PLAIN: "text without control characters or line breaks",
}


class Section(BaseModel):
    """A part of a spec: immutable, and refusing what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=False)
