"""A silo as the checks see it: what several of them need is read once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedplat.home import SiloHome
from fedplat_silo.datasets import load_datasets, parse_dataset
from fedplat_silo.membership import Membership, load_membership
from fedplat_silo.policy import Policy, load_policy
from fedplat_silo.status import Status, read_status


@dataclass(frozen=True)
class Visit:
    """`data`: NAME=PATH as typed. Properties raise FedplatError; the check that asks first tells it."""

    home: SiloHome
    data: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()
    num_workers: int = 1

    @cached_property
    def membership(self) -> Membership:
        """Who this silo is."""
        return load_membership(self.home)

    @cached_property
    def status(self) -> Status | None:
        """What the silo's process does; None if there is none."""
        return read_status(self.home)

    @cached_property
    def address(self) -> str:
        """Of the server: where the process connects to, else where it was enrolled."""
        return self.status.server if self.status else self.membership.place.address

    @cached_property
    def policy(self) -> Policy:
        """What this silo allows; the defaults if there is no file yet."""
        return load_policy(self.home.policy) if self.home.policy.exists() else Policy()

    @cached_property
    def datasets(self) -> dict[str, Path]:
        """The remembered datasets, and those that were typed over them. Nothing is remembered."""
        return load_datasets(self.home.datasets) | dict(map(parse_dataset, self.data))

    @property
    def log(self) -> Path:
        """Where details go that may hold a patient's value."""
        return self.home.path / "doctor.log"
