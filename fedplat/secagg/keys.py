"""The key schedule: from an X25519 exchange once an epoch to single-use keys for every step.

    shared secret --HKDF(salt = roster hash)--> chain key --"root", context--> step root --> mask seed, bundle keys
                                                    |
                                                    +------"next"-----> chain key of the next step

A chain key does not give the one before it: what was masked in old steps cannot be derived from today's disk.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from cryptography.hazmat.primitives.poly1305 import Poly1305

from fedplat.identity.signing import enc
from fedplat.secagg.errors import Refusal, RefusedError

KEY_BYTES = 32
CHECK_BYTES = 16
LABEL = "fedplat/secagg/1/"
"""Begins every label, so that what is derived or signed here means nothing elsewhere."""


def digest(purpose: str, *fields: bytes | str | int) -> bytes:
    """SHA-256 over the labelled, length-prefixed fields."""
    return hashlib.sha256(enc(LABEL + purpose, *fields)).digest()


def expand(key: bytes, purpose: str, *fields: bytes | str | int) -> bytes:
    """X(key, purpose, ...): HKDF-Expand with SHA-256 (RFC 5869) over the labelled fields, 32 bytes."""
    return HKDFExpand(SHA256(), KEY_BYTES, enc(LABEL + purpose, *fields)).derive(key)


def chain_key(private: bytes, public: bytes, roster_hash: bytes, mine: str, peer: str) -> bytes:
    """ck of a pair: HKDF (RFC 5869) over their X25519 secret (RFC 7748). Raises RefusedError if it is all zero."""
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise RefusedError(Refusal.PEER_KEY, silo=peer) from None
    info = enc(LABEL + "pair", *sorted((mine, peer)))
    return HKDF(SHA256(), KEY_BYTES, salt=roster_hash, info=info).derive(shared)


def next_chain_key(key: bytes) -> bytes:
    """ck of the step after."""
    return expand(key, "next")


def step_root(key: bytes, context: bytes) -> bytes:
    """What a pair's keys of one step come from; other weights, silos or configuration give another root."""
    return expand(key, "root", context)


def mask_seed(root: bytes) -> bytes:
    """k_ij: the seed of a pair's mask."""
    return expand(root, "mask")


def check_value(seed: bytes) -> bytes:
    """Tells the server whether two silos have the same mask seed, and nothing about it; 16 bytes."""
    return expand(seed, "check")[:CHECK_BYTES]


def bundle_key(root: bytes, sender: str, receiver: str, upload_id: bytes) -> bytes:
    """The key of one share bundle, used for it alone."""
    return expand(root, "bundle", sender, receiver, upload_id)


def seed_hash(upload_id: bytes, seed: bytes) -> bytes:
    """H(b_i): a silo's commitment to its self mask."""
    return digest("self", upload_id, seed)


def share_seed(own_secret: bytes) -> bytes:
    """What the random coefficients of a step's shares come from."""
    return expand(own_secret, "shares")


def update_hash(own_secret: bytes, update: memoryview) -> bytes:
    """Tells a step's update from every other, 16 bytes: Poly1305 (RFC 8439) under a key of its own.

    Nobody who could look for a collision has the key, and it is seven times as quick as SHA-256.
    """
    return Poly1305.generate_tag(expand(own_secret, "update"), update)


def rounding_key(secret: bytes, spec_hash: str, round_number: int) -> bytes:
    """The key of a round's stochastic rounding: the same when a round is repeated. Under DP: fresh from the OS."""
    return expand(secret, "rounding", spec_hash, round_number)
