"""Share bundles: what a silo entrusts to each of the others, so that the sum can be opened without it.

A bundle holds one share per silo of the step, in roster order: in the sender's own place its share of the sender's
self mask b_i, in the place of m its share of the sender's pair seed k_im.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedplat.identity.signing import enc
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.keys import KEY_BYTES
from fedplat.secagg.prg import Keystream
from fedplat.secagg.shamir import split

_NONCE = bytes(12)  # a key seals one bundle and no other


def make_shares(secrets: Sequence[bytes], threshold: int, share_seed: bytes) -> list[bytes]:
    """A silo's secrets, one per silo of the step, shared among as many; the same seed gives the same shares."""
    joined = b"".join(secrets)
    coefficients = Keystream(share_seed).read((threshold - 1) * len(joined))
    return split(joined, threshold, len(secrets), coefficients)


def by_silo(shares: bytes, silos: Sequence[str]) -> dict[str, bytes]:
    """The shares of a bundle by the silo in whose place they stand."""
    return {silo: shares[i * KEY_BYTES : (i + 1) * KEY_BYTES] for i, silo in enumerate(silos)}


def seal(key: bytes, shares: bytes, context: bytes, sender: str, receiver: str, upload_id: bytes) -> bytes:
    """AES-256-GCM, bound to the step, both silos and the upload."""
    return AESGCM(key).encrypt(_NONCE, shares, enc(context, sender, receiver, upload_id))


def unseal(
    key: bytes, bundle: bytes, context: bytes, sender: str, receiver: str, upload_id: bytes, silos: Sequence[str]
) -> Mapping[str, bytes]:
    """The shares in a bundle. Raises RefusedError if it was altered, cut, or made for another place or time."""
    try:
        shares = AESGCM(key).decrypt(_NONCE, bundle, enc(context, sender, receiver, upload_id))
    except InvalidTag:
        raise RefusedError(Refusal.BUNDLE_INVALID, silo=sender) from None
    if len(shares) != len(silos) * KEY_BYTES:
        raise RefusedError(Refusal.BUNDLE_INVALID, silo=sender)
    return by_silo(shares, silos)
