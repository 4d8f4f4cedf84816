"""From the uploads of a round to the next model: average and step block by block, from file to file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedplat.secagg.figures import Figures
from fedplat_server.aggregation import MaskedMean, Update, UpdateError, WeightedMean
from fedplat_server.checkpoints import Checkpoint
from fedplat_server.context import RoundLost, RoundTask, RunContext
from fedplat_server.recruiting import RunPaused
from fedplat_server.strategies import NotFiniteError
from fedplat_server.uploads import Uploads
from fedplat_server.vectors import StoredVector, ahead


@dataclass(frozen=True)
class Stepped:
    """The next model, and what is known of the mean update that led to it. `divergence`: |sum w u| / sum w |u|."""

    cohort: tuple[str, ...]
    model: Checkpoint
    norm: float
    divergence: float | None
    figures: Figures | None = None
    """Of all silos together, if they came masked."""


class UpdateTooLarge(UpdateError):
    """The largest update of a mean that is above the spec's limit."""


def plain_mean(context: RunContext, cohort: Sequence[str], uploads: Uploads) -> WeightedMean:
    """The mean of updates as they are."""
    precision = context.spec.transport.precision
    staged = [uploads.updates[silo] for silo in cohort]
    return WeightedMean([Update(s.reply.silo, s.reply.weight, StoredVector(s.update, precision)) for s in staged])


def step(context: RunContext, task: RoundTask, cohort: tuple[str, ...], mean: WeightedMean | MaskedMean) -> Stepped:
    """The cohort is written down before anything that follows from it is there. UpdateError names the silo whose
    update is not finite, or the largest of a mean that is too large; RunPaused if it is too large and masked."""
    model = task.model
    with context.checkpoints.write(task.number, context.layout) as writer:
        blocks = ahead(mean.blocks())
        try:
            for block, update in blocks:
                state = {slot: kept.read(block.start, block.stop) for slot, kept in model.state.items()}
                weights = model.weights.read(block.start, block.stop)
                writer.add(*context.strategy.step(task.number, weights, update, mean.total_weight, state))
        except NotFiniteError:
            for _ in blocks:  # the norms of the rest: it may be one silo's doing
                pass
            _check_norm(context, cohort, mean)
            raise
        _check_norm(context, cohort, mean)
        context.store.rounds.fix_cohort(run_id=context.run_id, number=task.number, cohort=cohort)
        figures = mean.figures if isinstance(mean, MaskedMean) else None
        return Stepped(cohort, writer.commit(), mean.norm, mean.divergence, figures)


def step_again(context: RunContext, task: RoundTask, cohort: Sequence[str], uploads: Uploads) -> Stepped:
    """The step with a cohort that was fixed before the server was restarted. RoundLost if an upload is gone."""
    if gone := [silo for silo in cohort if silo not in uploads.updates]:
        raise RoundLost(f"the staged updates of {', '.join(gone)} are missing or damaged")
    return step(context, task, tuple(cohort), plain_mean(context, cohort, uploads))


def _check_norm(context: RunContext, cohort: tuple[str, ...], mean: WeightedMean | MaskedMean) -> None:
    limit = context.spec.stop.max_update_norm
    if limit is not None and mean.norm > limit:
        if isinstance(mean, MaskedMean):
            text = f"the mean update's norm is {mean.norm:.3g}, above [stop] max_update_norm ({limit:g}), and masked"
            text = f"{text}: whose update it is cannot be seen. Submit a new run with a higher limit or a lower rate"
            raise RunPaused(text, "update_too_large")
        largest = max(zip(mean.weighted_norms, cohort, strict=True))[1]
        raise UpdateTooLarge(largest, f"makes the mean's norm {mean.norm:.3g}")
