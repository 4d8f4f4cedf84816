"""What a silo keeps on disk for one run: its keys, the open step, and what it must never forget.

Secrets are inside: the file is the owner's alone, and is replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Self, TypeAlias

from pydantic import Field, ValidationError

from fedplat.canonical import canonical_json
from fedplat.errors import HomeError
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.messages import (
    Check,
    Cohort,
    Hex,
    Key,
    Keys,
    Part,
    Roster,
    Signature,
    SignedKey,
    SiloName,
    Step,
    UnmaskAnswer,
    UploadId,
)
from fedplat.secagg.roster import RunBinding


class Agreed(Part):
    """The one cohort of a step, this silo's signature over it, and its answer to whoever shows enough signatures."""

    cohort: Cohort
    signature: Signature
    answer: UnmaskAnswer = Field(repr=False)


class StepRecord(Part):
    """An open step: everything that left or will leave can be made again from it, byte for byte."""

    step: Step
    context: Key
    silos: tuple[SiloName, ...]
    threshold: int
    weights: Hex
    update_hash: Check
    upload_id: UploadId
    self_seed: Key = Field(repr=False)
    own_secret: Key = Field(repr=False)
    """Never leaves. The random coefficients of the shares come from it, for a bundle that is made again must be the
    same, as its key is used once; they must not follow from `self_seed`, which the server learns."""
    roots: Keys = Field(repr=False)
    agreed: Agreed | None = None


class Release(Part):
    """A cohort that this silo has signed: digests of the names invited to the step, and of those in its sum."""

    silos: Check
    cohort: Check


Releases: TypeAlias = dict[Hex, tuple[Release, ...]]
"""Different cohorts signed, by the digest of the weights that they trained from."""


class SiloState(Part):
    """A silo's side of one run. Every change is a new state, to be on disk before the answer that came with it."""

    binding: RunBinding
    name: SiloName
    family: SiloName
    """The first of the runs that continue each other; this one, if it continues none."""
    epoch: Annotated[int, Field(ge=0)] = 0
    next_step: Annotated[int, Field(ge=1, le=2**53)] = 1
    """The lowest step that is acceptable; `chains` are at it."""
    private_key: Key | None = Field(default=None, repr=False)
    signed_key: SignedKey | None = None
    roster: Roster | None = None
    roster_hash: Key | None = None
    chains: Keys = Field(default={}, repr=False)
    record: StepRecord | None = None
    releases: Releases = Field(default={}, repr=False)

    def to_json(self) -> str:
        """The whole state, secrets included."""
        return canonical_json(self.model_dump(mode="json", exclude_defaults=True))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises HomeError if the text is damaged; the error does not quote it."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise HomeError(
                f"a run's secure aggregation state is damaged ({error.error_count()} errors)",
                hint="Move the file away: the silo takes part again from the run's next epoch on.",
            ) from None


def open_run(
    kept: SiloState | None, binding: RunBinding, name: str, family: str = "", relatives: Iterable[SiloState] = ()
) -> SiloState:
    """The state of a run: what was kept of it, or a new one, with all that its relatives have released.

    `relatives`: this silo's states of every run of the family, read afresh under one lock with the change that
    follows. Siblings train from the same weights too. Raises RefusedError if the run id was used with another spec,
    at another server or by another silo.
    """
    state = kept or SiloState(binding=binding, name=name, family=family or binding.run)
    if (state.binding, state.name) != (binding, name):
        raise RefusedError(Refusal.RUN_CHANGED)
    for relative in relatives:
        state = state.model_copy(update={"releases": _joined(state.releases, relative.releases)})
    return state


def close_step(state: SiloState, step: int) -> SiloState:
    """The server has committed the step: its secrets go."""
    closes = state.record is not None and state.record.step <= step
    return state.model_copy(update={"record": None}) if closes else state


def finish(state: SiloState) -> SiloState:
    """The run is over: every secret goes; id, spec hash, last step and releases stay for good."""
    return SiloState(
        binding=state.binding,
        name=state.name,
        family=state.family,
        epoch=state.epoch,
        next_step=state.next_step,
        releases=state.releases,
    )


def _joined(mine: Mapping[str, tuple[Release, ...]], others: Mapping[str, tuple[Release, ...]]) -> Releases:
    weights = dict.fromkeys([*mine, *others])
    return {w: tuple(dict.fromkeys((*mine.get(w, ()), *others.get(w, ())))) for w in weights}
