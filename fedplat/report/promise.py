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


def flavor(unit: Unit, unprotected: tuple[str, ...]) -> Flavor:
    """The definition, and what it leaves out."""
    return Flavor(
        name="Approximate differential privacy (epsilon, delta)",
        input_metric=f"zero-out: the data of one {unit} are there, or are as if they were all zero",
        bound_on_input_distance=1,
        output_measure="(epsilon, delta), from the privacy loss distribution of all releases together",
        data_domain="tables whose columns, scales and categories are declared in the run spec",
        unprotected_quantities=unprotected,
    )


def implementation() -> Implementation:
    """What made the noise."""
    mechanisms = f"{MECHANISMS} {NOISED_METRICS}"
    return Implementation(
        software="fedplat", software_version=__version__, mechanisms=mechanisms, randomness=RANDOMNESS
    )


def trust_model(where: str, actors: tuple[Actor, ...]) -> TrustModel:
    """`where` the noise is made: in the silo, or in each silo."""
    return TrustModel(
        model_name=f"noise in {where}, before anything leaves it; nobody outside has to be trusted with this promise",
        actors=actors,
        release_type="many: an update each round, and noised figures of merit where the spec has them; all are charged",
        data_source_type="static within a run",
        access_type="non-interactive",
    )
