"""What travels for secure aggregation: parts of the messages of a run. Sizes are limited before anything is used.

Bytes are base64 in JSON. Nothing here is printed by `repr` that is not public.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints

from fedplat.spec.secure import MAX_SILOS

TAG_BYTES = 16
MAX_BUNDLE_BYTES = MAX_SILOS * 32 + TAG_BYTES


def _from_text(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None


def _to_text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


Base64 = Annotated[bytes, BeforeValidator(_from_text), PlainSerializer(_to_text, return_type=str, when_used="json")]
Key = Annotated[Base64, Field(min_length=32, max_length=32)]
UploadId = Annotated[Base64, Field(min_length=16, max_length=16)]
Check = Annotated[Base64, Field(min_length=16, max_length=16)]
Signature = Annotated[Base64, Field(min_length=8, max_length=72)]
Bundle = Annotated[Base64, Field(min_length=2 * 32 + TAG_BYTES, max_length=MAX_BUNDLE_BYTES)]
SiloName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Pem = Annotated[str, StringConstraints(max_length=400, pattern=r"^[A-Za-z0-9+/=\n -]*$")]
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Step = Annotated[int, Field(ge=1, lt=2**53)]
Checks = Annotated[dict[SiloName, Check], Field(max_length=MAX_SILOS)]
Keys = Annotated[dict[SiloName, Key], Field(max_length=MAX_SILOS)]
Bundles = Annotated[dict[SiloName, Bundle], Field(max_length=MAX_SILOS)]
Signatures = Annotated[dict[SiloName, Signature], Field(max_length=MAX_SILOS)]


class Part(BaseModel):
    """Refuses what it does not know, and never quotes its input in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class SignedKey(Part):
    """A silo's X25519 key for one epoch of one run, signed by its enrolled key."""

    name: SiloName
    identity: Pem
    public_key: Key
    signature: Signature


class Roster(Part):
    """The keys of an epoch, sorted by name, and the step at which its chain keys begin."""

    epoch: Step
    first_step: Step
    keys: tuple[SignedKey, ...] = Field(min_length=2, max_length=MAX_SILOS)


class TrainPart(Part):
    """Beside the masked vector: what a silo commits to, and its share bundles by receiver."""

    upload_id: UploadId
    seed_hash: Key
    checks: Checks
    bundles: Bundles


class Member(Part):
    """One upload of a cohort."""

    name: SiloName
    upload_id: UploadId


Cohort = Annotated[tuple[Member, ...], Field(min_length=2, max_length=MAX_SILOS)]


class AgreeQuestion(Part):
    """The cohort of a step, and the bundles for the receiver by sender."""

    step: Step
    cohort: Cohort
    bundles: Bundles


class AgreeAnswer(Part):
    """A silo's signature over the cohort: its only one for this step."""

    step: Step
    signature: Signature


class UnmaskQuestion(Part):
    """The cohort with the signatures of enough of its members."""

    step: Step
    cohort: Cohort
    signatures: Signatures


class UnmaskAnswer(Part):
    """A silo's shares of the self masks of the cohort, its own pair seeds with the silos outside it, and its shares
    of the other members' pair seeds with those."""

    step: Step
    self_shares: Keys = Field(repr=False)
    seeds: Keys = Field(repr=False)
    pair_shares: Annotated[dict[SiloName, Keys], Field(max_length=MAX_SILOS)] = Field(repr=False)
