"""The exception tree.

    FedplatError
    ├── SpecError            a run spec that cannot be understood
    ├── PolicyError          a policy file that cannot be understood
    ├── DataError            a dataset that does not fit its schema (silo side only, never sent)
    ├── LayoutError          parameter names, shapes or groups that do not fit together
    ├── WireError            a message, invite or buffer that is malformed
    ├── IdentityError        a key, certificate, signature or invite that is not accepted
    ├── HomeError            a home directory that cannot be used
    │   └── HomeLockedError  another process already uses it
    ├── StoreError           the SQL database is of another version, or damaged, or its URL is wrong
    │   └── StoreUnavailableError  it cannot be used just now: away, locked, or its disk is full
    ├── ConnectionLostError  the other side does not answer
    ├── NotFoundError        a run, silo or file that does not exist
    └── ConflictError        the thing exists already, or is in a state that does not allow this

Every error says what happened, to which silo, run or file (`message`), and what to do next (`hint`).
`fedplat.cli` is the one boundary that prints them; no traceback reaches a user.
"""

from __future__ import annotations


class FedplatError(Exception):
    """An error that a person is meant to read: `message` says what happened, `hint` what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class SpecError(FedplatError):
    """A run spec that cannot be understood."""


class PolicyError(FedplatError):
    """A policy file that cannot be understood."""


class DataError(FedplatError):
    """A dataset that does not fit its schema. Stays on the silo: its text may hold a value."""


class LayoutError(FedplatError):
    """Parameter names, shapes or groups that do not fit together."""


class WireError(FedplatError):
    """A message, invite or buffer that is malformed."""


class IdentityError(FedplatError):
    """A key, certificate, signature or invite that is not accepted."""


class HomeError(FedplatError):
    """A home directory that cannot be used."""


class HomeLockedError(HomeError):
    """Another process already uses this home directory."""


class StoreError(FedplatError):
    """The SQL database cannot be used: another version's tables, a wrong URL, damage."""


class StoreUnavailableError(StoreError):
    """The SQL database cannot be used just now: it is away or locked, or its disk is full. Ask again later."""


class ConnectionLostError(FedplatError):
    """The other side does not answer."""


class NotFoundError(FedplatError):
    """A run, silo or file that does not exist."""


class ConflictError(FedplatError):
    """The thing exists already, or is in a state that does not allow this."""
