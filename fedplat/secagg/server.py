"""The server's side of a step: who is in the cohort, what to ask the silos, and which masks are left in their sum.

Nothing is kept here. Whoever calls keeps the uploads' parts and, before any silo sees it, the cohort: one a step, for
ever. Signatures and answers can be asked for again.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fedplat.secagg import keys
from fedplat.secagg.cohort import check_signature
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.messages import (
    AgreeAnswer,
    AgreeQuestion,
    Member,
    Roster,
    TrainPart,
    UnmaskAnswer,
    UnmaskQuestion,
)
from fedplat.secagg.prg import Stream
from fedplat.secagg.shamir import combine
from fedplat.secagg.terms import StepTerms


@dataclass(frozen=True)
class ServerStep:
    """One step, as the server knows it. `uploads`, `answers`: by the name of the silo, wherever they are asked for."""

    roster: Roster
    context: bytes
    terms: StepTerms
    min_cohort: int
    """The largest that any silo of the step insists on."""

    def check_upload(self, name: str, part: TrainPart) -> None:
        """Raises RefusedError unless the part has a check value and a bundle for every other silo of the step."""
        peers = set(self.terms.silos) - {name}
        size_bytes = len(self.terms.silos) * keys.KEY_BYTES + 16
        complete = part.checks.keys() == peers and part.bundles.keys() == peers
        if name not in self.terms.silos or not complete or any(len(b) != size_bytes for b in part.bundles.values()):
            raise RefusedError(Refusal.BUNDLE_INVALID, silo=name)

    def left_out(self, uploads: Mapping[str, TrainPart]) -> tuple[str, ...]:
        """Those whose masks would not cancel: they have other keys, or saw other terms, than the silos that remain."""
        remaining = [name for name in self.terms.silos if name in uploads]
        out: list[str] = []
        while worst := _most_at_odds(uploads, remaining):
            remaining.remove(worst)
            out.append(worst)
        return tuple(out)

    def fix_cohort(self, uploads: Mapping[str, TrainPart], shown: Collection[str] = ()) -> tuple[Member, ...]:
        """The cohort of these uploads. Raises RefusedError if it is too small to be opened.

        `shown`: the names of a cohort that silos may have signed in an earlier step with the same weights. They sign
        no other, so it is this one again, or COHORT_TOO_SMALL until all of it has uploaded.
        """
        out = self.left_out(uploads)
        names = [name for name in self.terms.silos if name in uploads and name not in out]
        if shown:
            names = sorted(set(names) & set(shown), key=self.terms.silos.index)
        if len(names) < max(self.terms.threshold, self.min_cohort, len(shown)):
            raise RefusedError(Refusal.COHORT_TOO_SMALL)
        return tuple(Member(name=name, upload_id=uploads[name].upload_id) for name in names)

    def agree_question(self, name: str, cohort: Sequence[Member], uploads: Mapping[str, TrainPart]) -> AgreeQuestion:
        """What to ask a member of the cohort first."""
        bundles = {m.name: uploads[m.name].bundles[name] for m in cohort if m.name != name}
        return AgreeQuestion(step=self.terms.step, cohort=tuple(cohort), bundles=bundles)

    def check_agreement(self, name: str, cohort: Sequence[Member], answer: AgreeAnswer) -> None:
        """Raises RefusedError unless the member `name` has signed this cohort."""
        member = answer.step == self.terms.step and any(m.name == name for m in cohort)
        if not member:
            raise RefusedError(Refusal.COHORT_INVALID, silo=name)
        check_signature(self.roster, name, answer.signature, self.context, cohort)

    def unmask_question(self, cohort: Sequence[Member], answers: Mapping[str, AgreeAnswer]) -> UnmaskQuestion:
        """What to ask the members then. Raises RefusedError while too few have signed."""
        if len(answers) < self.terms.threshold:
            raise RefusedError(Refusal.ANSWERS_TOO_FEW)
        signatures = {name: answer.signature for name, answer in answers.items()}
        return UnmaskQuestion(step=self.terms.step, cohort=tuple(cohort), signatures=signatures)

    def check_answer(
        self, name: str, cohort: Sequence[Member], uploads: Mapping[str, TrainPart], answer: UnmaskAnswer
    ) -> None:
        """Raises RefusedError unless the answer of the member `name` is complete and fits its upload."""
        inside = {m.name for m in cohort}
        outside = set(self.terms.silos) - inside
        complete = (
            answer.step == self.terms.step
            and name in inside
            and answer.self_shares.keys() == inside
            and answer.seeds.keys() == outside
            and answer.pair_shares.keys() == inside - {name}
            and all(shares.keys() == outside for shares in answer.pair_shares.values())
        )
        if not complete or not all(_fits(uploads[name], peer, seed) for peer, seed in answer.seeds.items()):
            raise RefusedError(Refusal.SHARES_INVALID, silo=name)

    def streams(
        self, cohort: Sequence[Member], uploads: Mapping[str, TrainPart], answers: Mapping[str, UnmaskAnswer]
    ) -> list[Stream]:
        """The masks left in the sum of the cohort's uploads: `prg.apply` them to it, or to any part of it.

        `answers` are checked ones (`check_answer`), at least the threshold. Raises RefusedError for too few, and for
        shares that do not give what a silo committed to.
        """
        if len(answers) < self.terms.threshold:
            raise RefusedError(Refusal.ANSWERS_TOO_FEW)
        outside = [silo for silo in self.terms.silos if silo not in {m.name for m in cohort}]
        order = self.terms.silos.index
        left: list[Stream] = []
        for member in cohort:
            name = member.name
            self_seed, seeds = self._secrets(name, outside, uploads[name], answers)
            left.append(Stream(self_seed, -1))
            left += [Stream(seed, -1 if order(name) < order(peer) else 1) for peer, seed in seeds.items()]
        return left

    def _secrets(
        self, name: str, outside: Sequence[str], upload: TrainPart, answers: Mapping[str, UnmaskAnswer]
    ) -> tuple[bytes, Mapping[str, bytes]]:
        """A member's self mask, and its pair seeds with the silos outside: as it told them, else from shares."""
        told = answers[name].seeds if name in answers else None
        missing = outside if told is None else []
        joined = combine(
            [(self.terms.silos.index(who) + 1, _joined(answer, name, missing)) for who, answer in answers.items()],
            self.terms.threshold,
        )
        self_seed, *rest = (joined[i : i + keys.KEY_BYTES] for i in range(0, len(joined), keys.KEY_BYTES))
        seeds = dict(zip(missing, rest, strict=True)) if told is None else told
        committed = hmac.compare_digest(keys.seed_hash(upload.upload_id, self_seed), upload.seed_hash)
        if not committed or not all(_fits(upload, peer, seed) for peer, seed in seeds.items()):
            raise RefusedError(Refusal.SHARES_INVALID, silo=name)
        return self_seed, seeds


def _joined(answer: UnmaskAnswer, name: str, missing: Sequence[str]) -> bytes:
    return answer.self_shares[name] + b"".join(answer.pair_shares[name][peer] for peer in missing)


def _fits(upload: TrainPart, peer: str, seed: bytes) -> bool:
    return hmac.compare_digest(keys.check_value(seed), upload.checks[peer])


def _most_at_odds(uploads: Mapping[str, TrainPart], names: Sequence[str]) -> str:
    """Who disagrees with the most others about their common mask, the last of equals; empty if nobody does."""
    worst, most = "", 0
    for a in names:
        num_odds = sum(a != b and uploads[a].checks[b] != uploads[b].checks[a] for b in names)
        if num_odds and num_odds >= most:
            worst, most = a, num_odds
    return worst
