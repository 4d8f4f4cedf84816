"""Published test vectors, through the functions that secure aggregation calls."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fedplat.identity.signing import enc
from fedplat.secagg import bundles, keys, prg
from fedplat.secagg.errors import Refusal
from fedplat.secagg.roster import sign_key
from tests.unit.secagg.world import BINDING, identity, refused

# RFC 7748, 6.1
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")

# RFC 5869, A.1
IKM, SALT = b"\x0b" * 22, bytes(range(13))
PRK = bytes.fromhex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5")
INFO = bytes(range(0xF0, 0xFA))
OKM = bytes.fromhex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf")


def hkdf(ikm: bytes, salt: bytes, info: bytes) -> bytes:
    """An implementation of its own; one block."""
    prk = hmac.digest(salt, ikm, "sha256")
    return hmac.digest(prk, info + b"\x01", "sha256")


def test_x25519_and_hkdf_of_a_pair() -> None:
    assert sign_key(identity(0), BINDING, 1, "silo-00", BOB).public_key == BOB_PUBLIC
    assert hkdf(IKM, SALT, INFO) == OKM
    info = enc("fedplat/secagg/1/pair", "alice", "bob")
    wanted = hkdf(SHARED, b"roster", info)
    assert keys.chain_key(BOB, ALICE_PUBLIC, b"roster", "bob", "alice") == wanted
    assert keys.chain_key(BOB, ALICE_PUBLIC, b"another", "bob", "alice") != wanted


def test_an_all_zero_secret() -> None:
    assert refused(Refusal.PEER_KEY, keys.chain_key, BOB, bytes(32), b"roster", "bob", "alice").silo == "alice"


def test_hkdf_expand(monkeypatch: pytest.MonkeyPatch) -> None:
    key = keys.expand(PRK, "mask", b"x", 3)
    assert key == hmac.digest(PRK, enc("fedplat/secagg/1/mask", b"x", 3) + b"\x01", "sha256")
    monkeypatch.setattr(keys, "enc", lambda *_: INFO)
    assert keys.expand(PRK, "mask") == OKM


def test_aes_256_ctr() -> None:
    """Test case 14 of the GCM specification, whose text is zeros; and chunks by way of the mode itself, which in turn
    gives SP 800-38A, F.5.5."""
    assert prg.Keystream(bytes(32)).read(16).hex() == "cea7403d4d606b6e074ec5d3baf39d18"
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    cipher = bytes.fromhex("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5")
    assert ctr(key, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"), plain) == cipher
    for chunk, word in [(0, 0), (0, 5), (1, 0), (700_000, prg.CHUNK - 3)]:
        counter = chunk.to_bytes(12, "big") + (2).to_bytes(4, "big")
        wanted = ctr(key, counter, bytes(4 * (word + 3)))[-12:]
        found = prg.Keystream(key).words(prg.new_scratch(), chunk * prg.CHUNK + word, 3)
        assert found.astype("<u4").tobytes() == wanted


def ctr(key: bytes, counter: bytes, text: bytes) -> bytes:
    return Cipher(AES256(key), CTR(counter)).encryptor().update(text)


def test_aes_256_gcm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test cases 13 and 14 of the GCM specification: zero key, zero nonce."""
    monkeypatch.setattr(bundles, "enc", lambda *_: b"")
    arguments = (b"context", "a", "b", b"id")
    assert bundles.seal(bytes(32), b"", *arguments).hex() == "530f8afbc74536b9a963b4f1c4cb738b"
    sealed = bundles.seal(bytes(32), bytes(16), *arguments)
    assert sealed.hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


def test_poly1305(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8439, 2.5.2."""
    key = bytes.fromhex("85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b")
    monkeypatch.setattr(keys, "expand", lambda *_: key)
    tag = keys.update_hash(bytes(32), memoryview(b"Cryptographic Forum Research Group"))
    assert tag.hex() == "a8061dc1305136c6c22b8baf0c0127a9"


def test_every_use_has_a_label() -> None:
    fields = (b"a", 1)
    assert keys.digest("x", *fields) == hashlib.sha256(enc("fedplat/secagg/1/x", *fields)).digest()
    root = bytes(32)
    derived = [
        keys.next_chain_key(root),
        keys.step_root(root, b""),
        keys.mask_seed(root),
        keys.bundle_key(root, "a", "b", b""),
        keys.bundle_key(root, "b", "a", b""),
        keys.rounding_key(root, "", 1),
        keys.share_seed(root),
        keys.expand(root, "update"),
        keys.expand(root, "check"),
    ]
    assert len(set(derived)) == len(derived)
    assert keys.check_value(root) == keys.expand(root, "check")[:16]
