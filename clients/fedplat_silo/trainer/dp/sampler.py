"""Who is in a step: each unit by a coin of its own, from a key that no one outside the silo has."""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fedplat_silo.trainer.ddp import Place, copy_from_first

Indices = npt.NDArray[np.int64]
_KEY_BYTES = 32
_WORD_BYTES = 8


class PoissonSampler:
    """Samples of `num_units`, each unit in with probability `rate`, independently of the others and of other steps."""

    def __init__(self, key: bytes, num_units: int, rate: float) -> None:
        self._key = key
        self._zeros = bytes(num_units * _WORD_BYTES)
        self._threshold = int(rate * 2**64)

    def draw(self, step: int) -> Indices:
        """The numbers of the units in the sample of `step`, ascending; the same at every rank."""
        nonce = bytes(4) + step.to_bytes(12, "little")  # the first four bytes count the blocks
        stream = Cipher(algorithms.ChaCha20(self._key, nonce), mode=None).encryptor().update(self._zeros)
        words = np.frombuffer(stream, dtype="<u8")
        return np.flatnonzero(words <= np.uint64(self._threshold - 1)) if self._threshold else np.arange(0)


def shared_key(place: Place) -> bytes:
    """A fresh key from the operating system, drawn by rank 0 and the same at every rank."""
    key = torch.frombuffer(bytearray(secrets.token_bytes(_KEY_BYTES)), dtype=torch.uint8).to(place.device)
    copy_from_first([key], place)
    return key.cpu().numpy().tobytes()
