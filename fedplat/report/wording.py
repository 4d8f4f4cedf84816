"""What the report says in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from fedplat.privacy.values import round_up
from fedplat.report.material import Material
from fedplat.report.model import Actor, Assumption, Kind, Lifetime, Loss, PrivacyLoss, Status
from fedplat.spec.governance import GovernanceSection

_GOVERNANCE = {
    "purpose": "Purpose of the processing",
    "legal_basis": "Legal basis",
    "ethics_reference": "Ethics approval (reference)",
    "controllers": "Controllers",
    "recipients": "Recipients of the model",
    "retention": "Retention",
}
_BY_HAND = ("Privacy officer (name, date, signature)", "Decision", "Until when it holds")
POPULATION_FACTS = (
    "What the study finds out about people in general. If the model shows that smokers fall ill more often, one"
    " learns something about every smoker, whether or not they were in the data."
)
COMPOSITION = (
    "All releases on these patients are composed from their events, over all runs and all datasets that share a"
    " patient or a record, tuning runs included. Epsilons of runs do not add up to the epsilon of all of them."
)
MECHANISMS = (
    "DP-SGD: each step takes every patient (or record) independently, by the sampling rate, clips its gradient to the"
    " clip norm, adds Gaussian noise of noise multiplier x clip norm once a step, and divides by a declared constant."
)
NOISED_METRICS = (
    "Figures of merit: in each evaluation every patient (or record) of the test records adds a vector of norm at most 1"
    " to the sums, which get Gaussian noise of a noise multiplier of their own before they leave: a step of rate 1."
)
RANDOMNESS = "The operating system's, in the silo; the server knows no seed of samples or noise."
NO_AUDIT = "No attack was run against the models of this report; the figures are proofs, not measurements."

NEW_DATASET = (
    "The silo's ledger does not know this dataset yet. If its patients are in another dataset here, what they were"
    " charged comes on top: the silo finds that out when it takes part."
)
_NOISED = {
    True: ", each noised before it left",
    False: ", without any noise",
    None: ", noised only where the run has differential privacy",
}
_BESIDES = "figures of merit, timings, and what the silos have signed of their ledgers"

ATTENTION = "Attention"
TIMES = "times in 100"
UNITS = {
    "patient": "Protected are all records of one patient in a silo's training data together, however many: the spec"
    " names the column that says whose a record is, and they move a step by the clip norm at most.",
    "record": "Protected is one record in a silo's training data: the spec of a run names no column that says whose a"
    " record is, or wants it so. A patient with several records is protected less.",
}
"""Whom the figures protect, and why."""


def summary(material: Material, kind: Kind, loss: PrivacyLoss, lifetime: Lifetime) -> tuple[str, ...]:
    """Page one, in odds: the wording that people understood best (Nanayakkara et al. 2023)."""
    will = "would be" if kind is Kind.PLAN else "is"
    lines = []
    if loss.alone is not None:
        lines.append(_odds(material, f"From what run {material.subject} {_releases(kind)} alone: s", loss.alone, will))
    leads = {
        Kind.LIFETIME: "S",
        Kind.RUN: "From all that these patients' data were used for here, that run included: s",
        Kind.PLAN: "From all that these patients' data were, and may yet be, used for here, this plan included: s",
    }
    return (*lines, _odds(material, leads[kind], loss.lifetime, will), *_figures(material, kind, loss, lifetime))


def to_be_filled_in(said: GovernanceSection) -> tuple[str, ...]:
    """What the spec's [governance] does not say, and what only people can."""
    return (*(label for key, label in _GOVERNANCE.items() if not getattr(said, key)), *_BY_HAND)


def governance(said: GovernanceSection) -> tuple[tuple[str, str], ...]:
    """What the spec's [governance] says, each under its label."""
    told = {key: getattr(said, key) for key in _GOVERNANCE}
    return tuple(
        (label, told[key] if isinstance(told[key], str) else ", ".join(told[key]))
        for key, label in _GOVERNANCE.items()
        if told[key]
    )


def failed(assumptions: tuple[Assumption, ...]) -> tuple[str, ...]:
    """Page one, where something does not hold."""
    names = [one.statement for one in assumptions if one.status is Status.FAIL]
    return tuple(f"{ATTENTION}, this does not hold: {name}" for name in names)


def unprotected(material: Material) -> tuple[str, ...]:
    """What the promise does not cover."""
    return tuple(_unprotected(material))


def actors(material: Material) -> tuple[Actor, ...]:
    """Who sees what."""
    run = material.the_run
    is_secure = run.spec.secure_aggregation if run is not None and run.spec is not None else None
    return everybody(f"Silo {material.silo}", is_secure, is_private(material))


def everybody(silo: str, is_secure: bool | None, private: bool | None) -> tuple[Actor, ...]:
    """Who sees what, from the inside out; `is_secure`, `private`: None if runs differ in that."""
    made_of = "each round's model, which is made of the updates" + _NOISED[private]
    return (
        Actor(
            name=f"{silo}, and whoever administers its machine",
            sees="everything there: records, gradients before the noise, keys; and each round's model",
        ),
        Actor(name="The server and its operator", sees=f"{_server_sees(is_secure, private)}; {_BESIDES}"),
        Actor(name="Other silos", sees=made_of),
        Actor(name="Whoever gets the model", sees="the final model, and what the study publishes of its rounds"),
    )


def _server_sees(is_secure: bool | None, private: bool | None) -> str:
    what = {
        True: "the sum of all silos' updates, and no single one",
        False: "every update of a silo",
        None: "every update of a silo, or the sum of all and no single one, as a run's spec says",
    }
    return what[is_secure] + _NOISED[private]


def is_private(material: Material) -> bool | None:
    """Whether the run, or every run, has differential privacy; None if some have it, and some not."""
    runs = [material.the_run] if material.the_run is not None else material.runs
    found = {run.has_privacy for run in runs} or {True}
    return found.pop() if len(found) == 1 else None


def _releases(kind: Kind) -> str:
    return "will release" if kind is Kind.PLAN else "released"


def _odds(material: Material, lead: str, loss: Loss, will: str) -> str:
    who = "whether a patient took part" if material.unit == "patient" else "whether a record was used"
    return odds(f"{lead}omeone who tries to tell from the model {who} {will} right", loss)


def odds(who: str, loss: Loss) -> str:
    """How often somebody is right, beside a coin; `who`: the sentence up to that."""
    if loss.epsilon is None:
        return f"{who} up to 100 {TIMES}: there is no bound. A coin toss is right 50 times."
    return f"{who} at most {loss.right_in_100} {TIMES}, where a coin toss is right 50 times."


def _figures(material: Material, kind: Kind, loss: PrivacyLoss, lifetime: Lifetime) -> Iterator[str]:
    delta = f"{lifetime.delta:g}"
    if loss.alone is not None and loss.alone.epsilon is None:
        yield f"No epsilon, the usual measure, bounds what that run {_releases(kind)}."
    elif loss.alone is not None:
        yield f"In the usual measure, that run's epsilon is {say(loss.alone.epsilon)} at delta {delta}."
    when = "would have been spent with this plan and all that open runs may still spend"
    what = when if kind is Kind.PLAN else "was spent so far"
    if lifetime.after is None:
        yield "For life, no epsilon bounds what was released, or may be: something has no noise, or too little."
    else:
        yield f"For life, epsilon {say(lifetime.after)} at delta {delta} {what}."
    if kind is Kind.PLAN and not material.datasets:
        yield NEW_DATASET
    if lifetime.budget is None:
        yield "There is no budget for these patients: no limit in epsilon stops further runs."
    elif lifetime.fits:
        yield f"That is within the budget of epsilon {lifetime.budget:g}, which is for life and for all runs together."
    else:
        most = "more than any number" if lifetime.committed is None else f"{say(lifetime.committed)}, which is more"
        whole = "with all that open runs may still spend it comes to"
        yield f"The budget for life is epsilon {lifetime.budget:g}; {whole} {most}."


def _unprotected(material: Material) -> Iterator[str]:
    yield POPULATION_FACTS
    yield "That this hospital takes part, in which runs and when, how long it needed, and whether its training failed."
    yield "How many patients or records there are: the promise takes the number as public."
    run = material.the_run
    yield metrics_told(run.spec.metrics if run is not None and run.spec is not None else None)
    yield "What was, or will be, published from the same data by other means than this ledger's runs."
    yield "The records in the hospital itself: this is about what leaves it, not about who can read them there."
    if material.unit == "record" and not all(_is_single(d.num_records, d.num_patients) for d in material.datasets):
        yield "A patient with several records: each of them is protected as the figures say, all together less."
    if bare := [run.run for run in material.runs if not run.has_privacy]:
        yield f"Everything that runs without differential privacy learned from these data: {', '.join(bare)}."


def metrics_told(known: str | None) -> str:
    """`known`: what the run's spec says of metrics; None if it is not known, or runs differ."""
    told = (
        "no epsilon counts them. Those on training records tell something about the very patients that this report is"
        " about, those on test records about others"
    )
    if known == "none":
        return "Nothing through figures of merit: this run lets none of them leave (metrics = none)."
    if known == "noised":
        return (
            "Nothing through figures of merit (loss, accuracy ...): they leave with noise of their own, which every"
            " epsilon here counts (metrics = noised)."
        )
    if known is not None:
        return f"Figures of merit (loss, accuracy ...) leave without noise (metrics = {known}): {told}."
    return (
        "Figures of merit (loss, accuracy ...), where a run's spec lets them leave without noise"
        f" (metrics = unprotected): {told}. The ledger does not keep what the specs of past runs said."
    )


def _is_single(num_records: int, num_patients: int | None) -> bool:
    return num_patients == num_records


def say(epsilon: float | None) -> str:
    """Rounded up to three digits after the point."""
    return "without bound" if epsilon is None else f"{round_up(epsilon, 3):.3f}"
