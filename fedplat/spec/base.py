"""What every part of a spec has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,62}$"
SILO_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
DIGEST_OR_EMPTY = r"^([0-9a-f]{64})?$"
# Text that is shown to people: no control characters or line breaks, nothing that changes the reading direction.
PLAIN = r"^[^\p{Cc}\p{Zl}\p{Zp}\u{202a}-\u{202e}\u{2066}-\u{2069}]*$"

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
