"""A silo with a book, a table of patients, and a quick sum in place of an accountant where figures do not matter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedplat.canonical import sha256_hex
from fedplat.home import SiloHome
from fedplat.identity import new_key, public_pem
from fedplat.ledger import SignedStatement, Statement
from fedplat.privacy import SampledGaussian
from fedplat.wire.buffers import Digest
from fedplat_silo.ledger import Book, Registration, begin_book, call_the_roll
from fedplat_silo.ledger.receipts import Receipt
from fedplat_silo.membership import Membership, Place

SILO = "hospital-a"
SPEC_HASH: Digest = sha256_hex("spec")


def steps(num: int, noise: float = 1.0) -> SampledGaussian:
    """Each costs 1 / noise by the quick sum."""
    return SampledGaussian(sampling_rate=1.0, noise_multiplier=noise, num_steps=num)


def quick_epsilon(events: Iterable[SampledGaussian], *, delta: float) -> float:
    """Not privacy: a figure that adds up, so that tests can say it by heart."""
    assert 0 < delta < 1
    return sum(event.num_steps / event.noise_multiplier for event in events)


def write_patients(path: Path, patients: Iterable[object]) -> Path:
    path.write_text("pid,age\n" + "".join(f"{one},{40 + place}\n" for place, one in enumerate(patients)))
    return path


@dataclass
class Scene:
    folder: Path

    def __post_init__(self) -> None:
        self.home = SiloHome(self.folder, SILO)
        self.home.create()
        self.key, self.server = new_key(), new_key()
        place = Place(
            address="localhost:1",
            node_id=1,
            server_key=public_pem(self.server),
            ca_fingerprint="0" * 64,
            key_fingerprint="0" * 64,
            invite="0" * 64,
        )
        self.membership = Membership(SILO, place, "", self.key)
        self.book = begin_book(self.home)

    def register(
        self, dataset: str = "heart", patients: Iterable[object] = range(10), column: str | None = "pid"
    ) -> Registration:
        path = write_patients(self.folder / f"{dataset}.csv", patients)
        return self.book.register(dataset, call_the_roll(path, dataset, column, self.book.key))

    def budget(self, epsilon: float, dataset: str = "heart") -> None:
        self.book.set_budget(dataset, epsilon=epsilon, delta=1e-5, unit="patient")

    def reserve(self, run: str, *events: SampledGaussian, dataset: str = "heart", mode: str = "record") -> Receipt:
        return reserve(self.book, run, *events, dataset=dataset, mode=mode)

    def reopen(self) -> Book:
        self.book = begin_book(self.home)
        return self.book

    def signed(self, receipt: Receipt) -> SignedStatement:
        return receipt.signed(SILO, self.key)

    def stated(self, receipt: Receipt) -> Statement:
        return Statement.model_validate_json(self.signed(receipt).statement)

    def files(self) -> dict[str, bytes]:
        """All that the ledger has on disk."""
        return {path.name: path.read_bytes() for path in self.home.path.glob("ledger.*")}

    def restore(self, files: dict[str, bytes]) -> None:
        for path in self.home.path.glob("ledger.*"):
            path.unlink()
        for name, content in files.items():
            (self.home.path / name).write_bytes(content)
            (self.home.path / name).chmod(0o600)


def reserve(book: Book, run: str, *events: SampledGaussian, dataset: str = "heart", mode: str = "record") -> Receipt:
    return book.reserve(run, spec_hash=SPEC_HASH, dataset=dataset, mode=mode, unit="patient", delta=1e-5, events=events)
