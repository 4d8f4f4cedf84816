"""What a round's replies say about the model: the federation's figures, and each silo's own where its policy shows
them. Metrics belong to the weights that they were measured on: tests in round r are of the weights of r - 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from fedplat.metrics import MetricSums, add_sums, summarise
from fedplat.reasons import Code, Reason
from fedplat.secagg.figures import Figures
from fedplat.wire.messages import Timings, TrainReply
from fedplat_server.context import RunContext
from fedplat_server.staging import Staged
from fedplat_server.stepping import Stepped
from fedplat_server.stopping import kl_divergence
from fedplat_server.store import Evaluation, SiloRoundFields, Split
from fedplat_server.transitions import SiloRoundState
from fedplat_server.uploads import Uploads, absent


def evaluations(parts: Sequence[TrainReply], number: int, stepped: Stepped) -> Iterator[Evaluation]:
    """Of the weights that the silos received, and of their training in this round."""
    if stepped.figures is not None:
        yield from masked_evaluations(stepped.figures, number, stepped.cohort, stepped.divergence)
        return
    tested = [(p.silo, p.evaluated) for p in parts if p.evaluated is not None]
    if tested:
        shown = [p.evaluated for p in parts if p.evaluated is not None and p.share_metrics]
        yield evaluation(tested, number - 1, Split.TEST, {"kl_divergence": kl_divergence(shown)})
    trained = [(p.silo, p.trained) for p in parts if p.trained is not None]
    if trained:
        yield evaluation(trained, number, Split.TRAIN, {"divergence": stepped.divergence})


def masked_evaluations(
    figures: Figures, number: int, cohort: Sequence[str], divergence: float | None = None
) -> Iterator[Evaluation]:
    """The same from the figures of all silos of a cohort together, which are there if all have given theirs."""
    if figures.evaluated is not None:
        yield _evaluation(figures.evaluated, number - 1, Split.TEST, cohort, {})
    if figures.trained is not None:
        yield _evaluation(figures.trained, number, Split.TRAIN, cohort, {"divergence": divergence})


def evaluation(
    sums: Sequence[tuple[str, MetricSums]],
    round_number: int,
    split: Split,
    further: Mapping[str, float | None] | None = None,
) -> Evaluation:
    """The federation's figures over the silos that sent sums of the usual shape; a silo of another shape (a wrong or
    hostile one) is not among `silos`."""
    usual = Counter(s.shape for _, s in sums).most_common(1)[0][0]
    sums = [(silo, s) for silo, s in sums if s.shape == usual]
    silos = [silo for silo, _ in sums]
    return _evaluation(add_sums(s for _, s in sums), round_number, split, silos, further or {})


def _evaluation(
    total: MetricSums,
    round_number: int,
    split: Split,
    silos: Sequence[str],
    further: Mapping[str, float | None],
) -> Evaluation:
    figures = summarise(total) | {k: v for k, v in further.items() if v is not None}
    return Evaluation(
        round_number=round_number,
        split=split,
        silos=list(silos),
        num_examples=total.num_examples,
        loss=figures.pop("loss", None),
        metrics=figures,
    )


def note_left_out(context: RunContext, found: Evaluation, sent: Sequence[str]) -> None:
    """An event for each silo whose sums could not be added."""
    why = "its sums have another shape than the others'"
    detail = {"round": found.round_number, "split": found.split, "why": why}
    note, kind = context.store.events.append, "metrics.left_out"
    for silo in sorted({*sent} - {*found.silos}):
        note(kind=kind, actor="server", run_id=context.run_id, silo_name=silo, detail=detail)


def note_tests(context: RunContext, number: int, tested: Sequence[tuple[str, MetricSums]]) -> None:
    """Keep the test figures of silos that share them, with the round whose weights they measured."""
    parts = {p.silo_name: p for p in context.store.rounds.silo_rounds(context.run_id, number)} if tested else {}
    for silo, sums in tested:
        if silo in parts:
            figures = {f"test_{k}": v for k, v in summarise(sums).items()}
            metrics = (parts[silo].metrics or {}) | figures
            context.store.rounds.silo_round(run_id=context.run_id, number=number, silo_name=silo, metrics=metrics)


def silo_rounds(context: RunContext, uploads: Uploads) -> dict[str, SiloRoundFields]:
    """What is kept of each silo's round; failures are written down already."""
    silent = Reason.of(Code.NO_ANSWER)
    return {silo: _silo_round(context, staged) for silo, staged in uploads.updates.items()} | {
        silo: absent(SiloRoundState.MISSED, uploads.away.get(silo, silent)) for silo in uploads.missing()
    }


def _silo_round(context: RunContext, staged: Staged) -> SiloRoundFields:
    body = staged.reply
    fields = timings_to_fields(body.timings)
    fields["num_examples"] = body.num_examples
    fields["bytes_up"] = staged.update.size_bytes
    fields["bytes_down"] = context.weights_bytes
    if body.share_metrics and body.trained is not None:
        fields["metrics"] = {f"train_{k}": v for k, v in summarise(body.trained).items()}
    return fields


def timings_to_fields(timings: Timings) -> SiloRoundFields:
    """Where a silo's time went, as the store calls it."""
    return SiloRoundFields(
        seconds_waiting=timings.waiting_s,
        seconds_training=timings.training_s,
        seconds_evaluating=timings.evaluating_s,
        seconds_communicating=timings.communicating_s,
        samples_per_second=timings.samples_per_s,
        busy_share=timings.busy_share,
        restarts=timings.restarts,
    )
