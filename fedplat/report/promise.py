"""What every report promises in the field's terms, whoever's patients it is about."""

from __future__ import annotations

from importlib.metadata import version

from fedplat import __version__
from fedplat.ledger import Unit
from fedplat.report.model import Actor, Flavor, Implementation, TrustModel
from fedplat.report.wording import MECHANISMS, NOISED_METRICS, RANDOMNESS

ACCOUNTANT = "privacy loss distribution (dp-accounting), zero-out adjacency, both directions"


def accountant_version() -> str:
    """Of dp-accounting."""
    return version("dp-accounting")


_NAME = "Approximate differential privacy (epsilon, delta)"
_NAMES = {
    True: _NAME,
    False: "None: the run has no differential privacy. The lines below describe runs that have it",
    None: f"{_NAME}, of the runs that have it; nothing is promised about the others",
}


def flavor(unit: Unit, unprotected: tuple[str, ...], private: bool | None) -> Flavor:
    """The definition, and what it leaves out; `private`: None if some runs have it, and some not."""
    return Flavor(
        name=_NAMES[private],
        input_metric=f"zero-out: the data of one {unit} are there, or add nothing; the number of {unit}s is the same",
        bound_on_input_distance=1,
        output_measure="(epsilon, delta), from the privacy loss distribution of all releases together",
        data_domain="as the run spec declares it: of tables the columns, their scales and categories",
        unprotected_quantities=unprotected,
    )


def implementation() -> Implementation:
    """What made the noise."""
    mechanisms = f"{MECHANISMS} {NOISED_METRICS}"
    return Implementation(
        software="fedplat", software_version=__version__, mechanisms=mechanisms, randomness=RANDOMNESS
    )


def trust_model(where: str, actors: tuple[Actor, ...], private: bool | None) -> TrustModel:
    """`where` the noise is made: in the silo, or in each silo; `private`: None if some runs have it, and some not."""
    inside = (
        f"noise in {where}, before anything leaves it; nobody outside has to be trusted with this promise, and it"
        " holds though all of them work together. The silo's own machine and administrators are trusted"
    )
    bare = "where a run has no differential privacy, everybody who sees an update or the model has to be trusted"
    return TrustModel(
        model_name={True: inside, False: bare, None: f"{inside}; {bare}"}[private],
        actors=actors,
        release_type="many: an update each round, and noised figures of merit where the spec has them; all are charged",
        data_source_type="static within a run",
        access_type="non-interactive",
    )
