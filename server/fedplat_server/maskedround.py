"""A round with secure aggregation: from masked uploads to the next model, by way of the sum that the silos open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedplat.errors import WireError
from fedplat.reasons import Reason
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.messages import Member
from fedplat.secagg.server import ServerStep
from fedplat.wire.messages import TrainRequest
from fedplat_server import registry
from fedplat_server.aggregation import MaskedMean
from fedplat_server.context import RoundLost, RoundTask, RunContext
from fedplat_server.opening import Opened, Opening, fix_cohort, fixed_cohort, named_uploads
from fedplat_server.outgoing import digest_of
from fedplat_server.secure import SecureRun
from fedplat_server.stepping import Stepped, step
from fedplat_server.store import SecureStepFields
from fedplat_server.uploads import Uploads


@dataclass(frozen=True)
class MaskedRound:
    """One step at a round. `question`: what all its silos are asked."""

    context: RunContext
    secure: SecureRun
    task: RoundTask
    uploads: Uploads
    question: TrainRequest
    waiting: Callable[[Sequence[str], int], None]

    def step(self, collect: Callable[[], float], members: Sequence[registry.Member]) -> Stepped:
        """Collects the uploads, if no earlier process has fixed whose they are, opens their sum, and steps. RunPaused,
        RunFailed or RoundLost if too few silos take part."""
        opened = self.secure.open_step(self.question, digest_of(self.context, self.task.model), self.task.number)
        cohort = fixed_cohort(self.secure, self.task.step)
        if cohort is None:
            waited_s = collect()
            self._leave_out(opened)
            self.uploads.check_enough(waited_s)
            cohort = fix_cohort(self.secure, opened, self.uploads.parts)
        self._check_all_there(cohort)
        names = tuple(member.name for member in cohort)
        self.context.store.rounds.fix_cohort(
            run_id=self.context.run_id, number=self.task.number, cohort=names, uploads=named_uploads(cohort)
        )
        found = Opening(self.secure, opened, self.uploads.parts, cohort, members, self.waiting).run()
        stepped = step(self.context, self.task, names, self._mean(opened, found))
        self._note(found, stepped)
        return stepped

    def _leave_out(self, opened: ServerStep) -> None:
        """Whose masks cannot cancel."""
        for silo, part in self.uploads.parts.items():
            try:
                opened.check_upload(silo, part)
            except RefusedError as error:
                self.uploads.fail(silo, Reason.of_refusal(error.refusal))
        for silo in opened.left_out(self.uploads.parts):
            self.uploads.fail(silo, Reason.of_refusal(Refusal.CHECKS_DIFFER))

    def _check_all_there(self, cohort: Sequence[Member]) -> None:
        """RoundLost if an upload of the cohort was lost since: a power cut can do that."""
        parts = self.uploads.parts
        gone = [m.name for m in cohort if m.name not in parts or parts[m.name].upload_id != m.upload_id]
        if gone:
            raise RoundLost(f"the staged updates of {', '.join(gone)} are missing or damaged")

    def _mean(self, opened: ServerStep, found: Opened) -> MaskedMean:
        assert self.task.epoch is not None
        staged = [self.uploads.updates[silo].update for silo in found.cohort]
        figures, max_weight = self.secure.figures, self.task.epoch.max_weight
        try:
            return MaskedMean(staged, found.streams, opened.terms.vector, figures, max_weight)
        except WireError as error:
            raise RoundLost(error.message) from None

    def _note(self, found: Opened, stepped: Stepped) -> None:
        assert stepped.figures is not None
        masking_s = max(self.uploads.updates[silo].reply.timings.masking_s for silo in stepped.cohort)
        known = SecureStepFields(num_clipped=stepped.figures.num_clipped, seconds_masking=masking_s)
        self.secure.store.secure.note(run_id=self.context.run_id, step=self.task.step, **(found.notes | known))
