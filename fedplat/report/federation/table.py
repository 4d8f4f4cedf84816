"""What silos have signed as CSV: from it anybody can compute the figures again."""

from __future__ import annotations

from collections.abc import Iterator

from fedplat.report.federation.model import FederationFile, SiloLine
from fedplat.report.table import Row, csv_text

_HEADER = ("silo", "dataset", "kind", "sampling_rate", "noise_multiplier", "num_steps")


def federation_csv(file: FederationFile) -> str:
    """One row an event: `run` (of the run asked for), `lifetime` (of all runs), `may_still_spend`; `no_bound`."""
    return csv_text(_HEADER, (row for line in file.report.privacy_loss.silos for row in _rows(line)))


def _rows(line: SiloLine) -> Iterator[Row]:
    charges = {"run": line.alone, "lifetime": line.lifetime}
    for kind, charge in charges.items():
        if charge is not None and charge.epsilon is None:
            yield line.silo, line.dataset, "no_bound", "", "", ""
        for event in charge.events if charge is not None else ():
            yield line.silo, line.dataset, kind, event.sampling_rate, event.noise_multiplier, event.num_steps
    for event in line.may_still_spend:
        yield line.silo, line.dataset, "may_still_spend", event.sampling_rate, event.noise_multiplier, event.num_steps
