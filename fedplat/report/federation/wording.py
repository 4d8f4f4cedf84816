"""What the report on the federation says in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from fedplat.ledger import Unit
from fedplat.report import wording as common
from fedplat.report.federation.material import FederatedRun, FederationMaterial
from fedplat.report.federation.model import FederationLoss
from fedplat.report.model import Actor, Loss

COMPOSITION = (
    "Each silo charges its own patients, in a ledger of its own, and signs what it has charged. From these signed"
    " events the server computes every figure anew. Runs on the same patients compose; epsilons do not add up."
)


def rule(material: FederationMaterial) -> str:
    """How the federation's figures come from the silos'."""
    most = "A patient is in one silo's data: the federation's figures are the largest of any silo."
    if not material.overlaps:
        return f"{most} Nobody can check that; whoever signs declares it."
    named = "; ".join(" and ".join(overlap) for overlap in material.overlaps)
    return (
        f"Specs declare that these may treat the same patients: {named}. Their losses are composed. The others'"
        " patients are declared to be in one silo's data each; the figures are the largest of all these."
    )


def summary(material: FederationMaterial, loss: FederationLoss) -> tuple[str, ...]:
    """Page one, in odds (Nanayakkara et al. 2023)."""
    return tuple(_summary(material, loss))


def _summary(material: FederationMaterial, loss: FederationLoss) -> Iterator[str]:
    if loss.alone is not None and material.run is not None:
        yield _odds(f"From what run {material.run.id} released alone: s", loss.alone, loss.privacy_unit)
    yield _odds("From all that these silos' patients were used for here: s", loss.lifetime, loss.privacy_unit)
    delta = f"{loss.delta:g}"
    if loss.alone is not None:
        yield _at_most("In the usual measure, that run's epsilon", loss.alone, delta)
    yield _at_most("For life, epsilon", loss.lifetime, delta)
    yield loss.rule
    if material.run is not None:
        yield masking(material.run)


def _at_most(what: str, loss: Loss, delta: str) -> str:
    if loss.epsilon is None:
        return f"{what} is without bound at one silo at least."
    return f"{what} is {common.say(loss.epsilon)} at delta {delta}, at the silo where it is largest."


def is_private(material: FederationMaterial) -> bool | None:
    """Whether the run, or every run, has differential privacy; None if some have it, and some not."""
    if material.run is not None:
        return material.run.is_private
    return None if any(facts.bare_runs for facts in material.silos) else True


def masking(run: FederatedRun) -> str:
    """What secure aggregation adds, and what it needs."""
    stays = (
        "The figures above hold all the same, whoever works together: each update is noised in its silo."
        if run.is_private
        else "Nothing else protects the patients: no update was noised."
    )
    facts = run.masking
    if facts is None:
        return f"The server saw each silo's update: there was no secure aggregation. {stays}"
    if not facts.num_sums:
        return f"No sum was opened. {stays}"
    num = facts.colluders_tolerated
    unless = (
        f"unless more than {num} of the silos side with the server" if num else "unless a silo sides with the server"
    )
    return (
        f"Besides, the server saw sums alone: {facts.num_sums} of them, over {facts.smallest_cohort} silos or more. No"
        f" single update can be told from them {unless}. {stays}"
    )


def unprotected(material: FederationMaterial, unit: Unit) -> tuple[str, ...]:
    """What the promise does not cover."""
    return tuple(_unprotected(material, unit))


def actors(material: FederationMaterial) -> tuple[Actor, ...]:
    """Who sees what."""
    is_secure = material.run.spec.secure_aggregation if material.run is not None else None
    return common.everybody("Each silo", is_secure, is_private(material))


def _odds(lead: str, loss: Loss, unit: Unit) -> str:
    who = "whether a patient of any of these silos took part" if unit == "patient" else "whether a record was used"
    return common.odds(f"{lead}omeone who tries to tell from the model {who} is right", loss)


def _unprotected(material: FederationMaterial, unit: Unit) -> Iterator[str]:
    yield common.POPULATION_FACTS
    yield "Which hospitals take part, in which rounds and when, how long each needed, and whose training failed."
    yield "How many patients or records a silo has: its signed sampling rate tells it; it counts as public."
    run = material.run
    yield common.metrics_told(run.spec.metrics if run is not None else None)
    yield "What was, or will be, published from the same data by other means than these runs."
    yield "The records in the hospitals themselves: this is about what leaves them, not about who can read them there."
    if unit == "record":
        yield "A patient with several records: each of them is protected as the figures say, all together less."
    if bare := sorted({run for facts in material.silos for run in facts.bare_runs}):
        yield f"Everything that runs without differential privacy learned from these data: {', '.join(bare)}."
