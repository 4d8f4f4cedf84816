"""The cohort of a step, signed: with enough signatures under one cohort, no other can have enough."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric import ec

from fedplat.errors import IdentityError
from fedplat.identity.keys import load_public
from fedplat.identity.signing import Label, sign, verify
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.keys import LABEL
from fedplat.secagg.messages import Member, Roster


def sign_cohort(identity: ec.EllipticCurvePrivateKey, context: bytes, cohort: Sequence[Member]) -> bytes:
    """A silo's consent to open the sum of this cohort, and of no other, in the step with this context."""
    return sign(identity, Label.COHORT, *_fields(context, cohort))


def check_signature(roster: Roster, name: str, signature: bytes, context: bytes, cohort: Sequence[Member]) -> None:
    """Raises RefusedError unless the silo `name` of the roster has signed this cohort."""
    pem = next((key.identity for key in roster.keys if key.name == name), "")
    try:
        verify(load_public(pem), Label.COHORT, signature, *_fields(context, cohort))
    except IdentityError:
        raise RefusedError(Refusal.SIGNATURE, silo=name) from None


def check_signatures(
    roster: Roster, signatures: Mapping[str, bytes], context: bytes, cohort: Sequence[Member], threshold: int
) -> None:
    """Raises RefusedError unless at least `threshold` members of the cohort have signed it, and nobody else."""
    if len(signatures) < threshold or not signatures.keys() <= {m.name for m in cohort}:
        raise RefusedError(Refusal.COHORT_INVALID)
    for name, signature in signatures.items():
        check_signature(roster, name, signature, context, cohort)


def in_order(names: Sequence[str], order: Sequence[str]) -> bool:
    """Whether `names` are some of `order`, each once, in that order."""
    places = {name: place for place, name in enumerate(order)}
    found = [places.get(name, -1) for name in names]
    return all(place >= 0 for place in found) and all(a < b for a, b in itertools.pairwise(found))


def _fields(context: bytes, cohort: Sequence[Member]) -> tuple[bytes | str | int, ...]:
    return (LABEL + "cohort", context, len(cohort), *(part for m in cohort for part in (m.name, m.upload_id)))
