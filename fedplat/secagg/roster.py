"""Who masks with whom: signed per-epoch keys, and the roster that all silos of an epoch must see alike."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedplat.errors import IdentityError
from fedplat.identity.keys import fingerprint, load_public, public_pem
from fedplat.identity.signing import Label, sign, verify
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.keys import LABEL, digest
from fedplat.secagg.messages import Hex, Part, Roster, SignedKey, SiloName


class RunBinding(Part):
    """Which run at which server: every key is bound to it."""

    ca_fingerprint: Hex
    run: SiloName
    spec_hash: Hex


def sign_key(
    identity: ec.EllipticCurvePrivateKey, binding: RunBinding, epoch: int, name: str, private: bytes
) -> SignedKey:
    """The public half of an X25519 key, signed by the silo's enrolled key."""
    key = X25519PrivateKey.from_private_bytes(private).public_key()
    public = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    fields = _signed_fields(binding, epoch, name, fingerprint(identity.public_key()), public)
    signature = sign(identity, Label.ROSTER, *fields)
    return SignedKey(name=name, identity=public_pem(identity), public_key=public, signature=signature)


def check_key(binding: RunBinding, epoch: int, key: SignedKey, known: str | None) -> None:
    """Raises RefusedError unless the entry is signed by the silo whose fingerprint is `known` (None: first sight)."""
    try:
        public = load_public(key.identity)
        found = fingerprint(public)
        if known is not None and found != known:
            raise RefusedError(Refusal.PEER_CHANGED, silo=key.name)
        fields = _signed_fields(binding, epoch, key.name, found, key.public_key)
        verify(public, Label.ROSTER, key.signature, *fields)
    except IdentityError:
        raise RefusedError(Refusal.SIGNATURE, silo=key.name) from None


def check_roster(binding: RunBinding, roster: Roster, known: Mapping[str, str]) -> None:
    """Raises RefusedError unless names are sorted, names and keys distinct, and every entry good (`check_key`).

    `known`: fingerprints by name, remembered from first sight or pinned.
    """
    names = [key.name for key in roster.keys]
    if any(a >= b for a, b in itertools.pairwise(names)):
        raise RefusedError(Refusal.ROSTER_INVALID)
    for key in roster.keys:
        check_key(binding, roster.epoch, key, known.get(key.name))
    # One hospital under two names would count twice towards every threshold.
    for distinct in ({key.public_key for key in roster.keys}, set(fingerprints(roster).values())):
        if len(distinct) != len(names):
            raise RefusedError(Refusal.ROSTER_INVALID)


def make_roster(
    binding: RunBinding, epoch: int, first_step: int, keys: Sequence[SignedKey], known: Mapping[str, str]
) -> Roster:
    """The server's roster of an epoch. `first_step`: above every step of the epochs before it.

    `known`: fingerprints of the enrolled silos. Raises RefusedError naming the silo whose key is not good.
    """
    for key in keys:
        if key.name not in known:
            raise RefusedError(Refusal.PEER_CHANGED, silo=key.name)
    roster = Roster(epoch=epoch, first_step=first_step, keys=tuple(sorted(keys, key=lambda k: k.name)))
    check_roster(binding, roster, known)
    return roster


def fingerprints(roster: Roster, without: str = "") -> dict[str, str]:
    """The fingerprint of every silo of the roster; `without` itself, a silo remembers its peers."""
    return {key.name: fingerprint(load_public(key.identity)) for key in roster.keys if key.name != without}


def roster_hash(binding: RunBinding, roster: Roster) -> bytes:
    """RH: the same at two silos only if they were shown the same names, identities and keys, for the same run.

    Signatures are left out: one content has many of them.
    """
    known = fingerprints(roster)
    entries = [part for key in roster.keys for part in (key.name, known[key.name], key.public_key)]
    return digest(
        "roster",
        binding.ca_fingerprint,
        binding.run,
        binding.spec_hash,
        roster.epoch,
        roster.first_step,
        len(roster.keys),
        *entries,
    )


def _signed_fields(
    binding: RunBinding, epoch: int, name: str, own_fingerprint: str, public: bytes
) -> tuple[bytes | str | int, ...]:
    return (LABEL + "key", binding.ca_fingerprint, binding.run, binding.spec_hash, epoch, name, own_fingerprint, public)
