"""A report in the layout of the OpenDP deployments registry (github.com/opendp/deployments-registry-data).

Its records are YAML, of which JSON is a part: the file can be handed in as it is, once people have filled in the rest.
"""

from __future__ import annotations

import re

from fedplat.report.federation.model import FederationFile, FederationReport
from fedplat.report.material import SpecFacts
from fedplat.report.model import Loss, PrivacyReport
from fedplat.report.signing import AnyFile
from fedplat.report.wording import UNITS, say

Record = dict[str, object]
_BY_HAND = "TODO"
"""The registry's own word for what a person has still to say."""


def as_opendp(file: AnyFile) -> Record:
    """A draft record; what fedplat cannot know is left to people."""
    report = file.report
    day = report.made_at.date().isoformat()
    return {
        "url_slug": re.sub(r"[^a-z0-9]+", "-", f"{report.product.name} fedplat {day[:4]}".lower()).strip("-"),
        "status": "Draft",
        "deployment": {
            "product": _product(report, day),
            "dp_flavor": _flavor(report),
            "privacy_loss": _loss(report),
            "model": _model(report),
            "accounting": {"post_processing": "none", "composition": report.accounting.composition},
            "implementation": _implementation(report),
            "resources": {"sources": _sources(file), "registry_authors": []},
        },
    }


def _product(report: PrivacyReport | FederationReport, day: str) -> Record:
    product = report.product
    is_said = not product.intended_use.startswith("to be filled in")
    return {
        "name": product.name,
        "data_curators": list(product.data_curators),
        "intended_use": product.intended_use if is_said else _BY_HAND,
        "data_product_type": product.data_product_type,
        "data_product_region": _BY_HAND,
        "description": product.description,
        "publication_date": day,
        "data_product_sector": _BY_HAND,
    }


def _flavor(report: PrivacyReport | FederationReport) -> Record:
    flavor, loss = report.dp_flavor, _reported(report)
    return {
        "name": "Approximate DP" if loss.epsilon is not None else _BY_HAND,
        "input_metric": flavor.input_metric,
        "bound_on_input_distance": str(flavor.bound_on_input_distance),
        "output_measure": flavor.output_measure,
        "bound_on_output_distance": f"epsilon {say(loss.epsilon)} at delta {loss.delta:g}",
        "data_domain": flavor.data_domain,
        "unprotected_quantities": _list(flavor.unprotected_quantities),
    }


def _loss(report: PrivacyReport | FederationReport) -> Record:
    loss, unit = _reported(report), report.privacy_loss.privacy_unit
    epsilon = {} if loss.epsilon is None else {"epsilon": loss.epsilon}
    return {
        "privacy_unit": "User-level" if unit == "patient" else "Event-level",
        "privacy_unit_description": f"{UNITS[unit]} {report.privacy_loss.rule}"
        if isinstance(report, FederationReport)
        else report.privacy_loss.privacy_unit_description,
        "privacy_parameters": {**epsilon, "delta": loss.delta},
        "privacy_parameters_description": _list(report.summary),
    }


def _reported(report: PrivacyReport | FederationReport) -> Loss:
    """The run's where the report is about one; else of all runs."""
    return report.privacy_loss.alone or report.privacy_loss.lifetime


def _model(report: PrivacyReport | FederationReport) -> Record:
    model = report.model
    return {
        "model_name": "Local",
        "model_name_description": model.model_name,
        "actors": _list([f"{actor.name}: sees {actor.sees}" for actor in model.actors]),
        "release_type": "Multiple releases",
        "release_type_description": model.release_type,
        "data_source_type": "Static",
        "data_source_type_description": model.data_source_type,
        "access_type": "Non-interactive",
        "access_type_description": model.access_type,
    }


def _implementation(report: PrivacyReport | FederationReport) -> Record:
    made = report.implementation
    judged = [f"{one.status.value}: {one.statement} {one.detail}".rstrip() for one in report.accounting.assumptions]
    return {
        "pre_processing_eda_hyperparameter_tuning": "Values are scaled and filled in by declared constants. Every run"
        " on the same patients is charged, tuning runs included.",
        "mechanisms": f"{made.mechanisms} {spec_line(_spec(report))}".rstrip(),
        "justification": _list(
            [
                f"{made.software} {made.software_version}; randomness: {made.randomness}",
                f"accountant: {report.accounting.accountant} {report.accounting.accountant_version}",
                report.empirical.note,
                *judged,
            ]
        ),
    }


def spec_line(spec: SpecFacts | None) -> str:
    """The parameters that a spec gives."""
    if spec is None:
        return ""
    return f"Clip norm {spec.clip_norm:g}, {spec.expected_batch_size} in a step on average, {spec.num_rounds} rounds."


def _spec(report: PrivacyReport | FederationReport) -> SpecFacts | None:
    if isinstance(report, FederationReport):
        return report.run.spec if report.run is not None else None
    is_about = report.privacy_loss.alone is not None and report.accounting.runs
    return report.accounting.runs[-1].spec if is_about else None


def _sources(file: AnyFile) -> str:
    key = file.signature.fingerprint if file.signature is not None else "nobody"
    kind = "the federation's server" if isinstance(file, FederationFile) else "a silo"
    return _list([f"Privacy report of {kind}, made by fedplat, signed by the key {key}"])


def _list(lines: tuple[str, ...] | list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
