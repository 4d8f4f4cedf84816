"""The words of a privacy report that not every reader knows, and the questions that it leaves to others."""

from __future__ import annotations

WORDS = (
    ("Silo", "A hospital, or another institution, that trains on its own records on its own machine."),
    (
        "Round, release",
        "In a round every silo trains and sends its update of the model. Whatever leaves so is a release, and is"
        " charged.",
    ),
    (
        "Epsilon",
        "By how much all releases together may shift anybody's odds about one patient: at most by the factor e^epsilon,"
        " which is 2.7 at epsilon 1, 20 at 3 and 3,000 at 8. At 0 nothing can be told. For k patients, such as a"
        " family, it is k times as large, and delta grows, too.",
    ),
    (
        "Delta",
        "A small chance besides: as if, with that chance, everything about a patient showed, and else epsilon held."
        " Delta times the number of patients should be far below 1. The odds on page one do not depend on it.",
    ),
    (
        "Odds, advantage",
        "They are for somebody who has every release and the data of everybody else, can compute without limit, and"
        " starts from even odds. Advantage: those found, less those falsely accused, of all; 0 is a coin toss, 1 is"
        " certainty.",
    ),
    (
        "Gaussian mu",
        "One number for the whole trade-off curve: the releases tell no more than one draw from a normal distribution"
        " does about whether its mean is 0 or mu.",
    ),
    (
        "Step, rate",
        "A round has many steps; each takes every patient with this probability, the sampling rate, and so at random"
        " that nobody knows who was in.",
    ),
    (
        "Clip norm, noise multiplier",
        "A patient moves a step by the clip norm at most; the noise has a standard deviation of noise multiplier times"
        " clip norm.",
    ),
    (
        "Ledger, budget",
        "The silo's own book of what its patients were charged, for life and over all runs; no entry is ever changed."
        " The budget is the epsilon at which the silo stops.",
    ),
    ("Countersigned", "The server has signed that it knows the ledger up to that entry."),
    (
        "PLD, RDP, PRV",
        "Three ways to add up what releases cost: privacy loss distributions (this report's figures), Renyi"
        " differential privacy, and privacy random variables. The library dp-accounting does the first two, Opacus the"
        " last.",
    ),
    ("Spec", "The run's settings in one file. Whoever has the same hash of it trains the same thing."),
)

NOT_ANSWERED = (
    "How large an epsilon is acceptable. No number is right for all data; the odds on page one are meant for that"
    " decision.",
    "How good the model is, and whether it serves small groups worse: clipping and noise cost those most of whom there"
    " are few. The command fedplat report run has figures over all test records together, not by group.",
    "Whether these data may be used for this purpose, whether they were collected as they should be, and how long the"
    " hospital keeps them.",
    "What recipients do with the model, and who may use it.",
    "Whether somebody at the silo's own machine changed the software, the data or the noise.",
)
