"""What can be wrong with a question to the accountant."""

from __future__ import annotations

from fedplat.errors import FedplatError


class PrivacyError(FedplatError):
    """An event or a question that has no privacy figure."""
