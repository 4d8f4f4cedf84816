"""What a run would come to at this silo, before it takes part. Reads the silo's data; nothing leaves."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fedplat_silo.data.exclusion import exclusion_file
from fedplat_silo.datasets import path_of
from fedplat_silo.inwords import in_words

if TYPE_CHECKING:
    from fedplat.home import SiloHome
    from fedplat.report import ReportFile
    from fedplat.spec import RunSpec
    from fedplat_silo.trainer.dp.preparing import Preparation


def prepare(place: SiloHome, spec: RunSpec) -> Preparation:
    """What every round of this private run would have in common, as a worker finds it at the join. Raises DataError."""
    from fedplat_silo.trainer.ddp import Place
    from fedplat_silo.trainer.plan import TrainingPlan
    from fedplat_silo.trainer.session import Session

    data = path_of(place, spec.data.name)
    with tempfile.TemporaryDirectory(prefix="fedplat-plan-") as folder, in_words(place.log):
        plan = TrainingPlan(spec=spec, silo=place.name, data=data, exclude=exclusion_file(place), run_dir=Path(folder))
        found = Session(plan, Place(), lambda phase, share: None).preparation
    assert found is not None
    return found


def report_of_plan(place: SiloHome, spec: RunSpec) -> ReportFile:
    """The report on a private run before it begins, for as many units as it would train on. Raises DataError,
    PrivacyError."""
    from fedplat.report import make_report
    from fedplat_silo.reporting import of_plan
    from fedplat_silo.reports import signed

    return signed(place, make_report(of_plan(place, spec, len(prepare(place, spec).units))))
