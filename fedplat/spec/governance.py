"""Who answers for a run, and why it is allowed: nothing here changes what is computed; reports carry it on."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from fedplat.spec.base import PLAIN, SILO_NAME, Section

Said = Annotated[str, StringConstraints(pattern=PLAIN, max_length=500)]
_SiloName = Annotated[str, StringConstraints(pattern=SILO_NAME)]


class GovernanceSection(Section):
    """What a privacy officer asks first. It is under the spec's hash, so all silos see the same.

    `shared_patients`: groups of silos that may treat the same patients, whose losses then compose.
    """

    purpose: Said = ""
    legal_basis: Said = ""
    ethics_reference: Said = ""
    controllers: Annotated[tuple[Said, ...], Field(max_length=100)] = ()
    recipients: Annotated[tuple[Said, ...], Field(max_length=100)] = ()
    retention: Said = ""
    shared_patients: Annotated[tuple[tuple[_SiloName, ...], ...], Field(max_length=100)] = ()

    @model_validator(mode="after")
    def _groups(self) -> Self:
        if any(len(set(group)) < 2 for group in self.shared_patients):
            raise ValueError('shared_patients takes groups of silos, as in [["hospital-a", "hospital-b"]]')
        return self
