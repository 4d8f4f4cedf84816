"""Checks of a run before it is submitted: whether this silo may and can take part in it. Loads torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedplat.doctor import Check, Finding, failed, ok, warning
from fedplat.doctor.machine import show_size
from fedplat.errors import DataError
from fedplat.privacy.planning import planned_event
from fedplat.spec import RunSpec, load_spec
from fedplat.spec.privacy import privacy_unit, steps_per_round
from fedplat.spec.secure import MAX_SILOS
from fedplat.wire.messages import layout_from_wire
from fedplat_silo.accounts import NO_DATA
from fedplat_silo.data.exclusion import exclusion_file, read_exclusion
from fedplat_silo.data.source import DataSource
from fedplat_silo.doctor.budget import check_budget
from fedplat_silo.doctor.rehearsal import Rehearsal, one_batch, rehearse
from fedplat_silo.doctor.visit import Visit
from fedplat_silo.inwords import in_words
from fedplat_silo.tasks.registry import identity

if TYPE_CHECKING:
    from fedplat_silo.data.examples import Datasets
    from fedplat_silo.tasks.base import Task
    from fedplat_silo.trainer.messages import Prepared

_TIMEOUT_S = 300.0  # a large dataset is read whole
_SLOW_SHARE = 0.5


def checks(visit: Visit, file: Path) -> Iterator[Check]:
    """From the spec to what it will cost."""
    study = Study(visit, file)
    yield Check("spec", study.check_spec, ("home",))
    yield Check("run policy", study.check_policy, ("spec", "policy"))
    yield Check("task", study.check_task, ("spec",), _TIMEOUT_S)
    yield Check("data", study.check_data, ("task", "datasets"), _TIMEOUT_S)
    yield Check("model", study.check_model, ("data", "policy"), _TIMEOUT_S)
    yield Check("budget", study.check_budget, ("model", "ledger"), _TIMEOUT_S)
    yield Check("dry run", study.check_dry_run, ("model",), _TIMEOUT_S)
    yield Check("round time", study.check_round_time, ("dry run",))


@dataclass(frozen=True)
class Study:
    """A run at this silo. What a check needs, the one before it has found."""

    visit: Visit
    file: Path

    @cached_property
    def spec(self) -> RunSpec:
        return load_spec(self.file)

    @cached_property
    def task(self) -> Task[Any]:
        from fedplat_silo.trainer.session import load_task

        return load_task(self.spec)

    @cached_property
    def path(self) -> Path:
        """Where the run's data are."""
        name = self.spec.data.name
        known = {NO_DATA: Path(os.devnull)} | self.visit.datasets
        if name not in known:
            raise DataError(
                f"this silo has no dataset {name!r}, which the spec asks for",
                hint=f"Name it: --data {name}=PATH here, and at `fedplat client join`.",
            )
        return known[name]

    @cached_property
    def data(self) -> Datasets:
        excluded = read_exclusion(exclusion_file(self.visit.home))
        return self.task.load(DataSource(self.path, self.spec.data, excluded))

    @cached_property
    def prepared(self) -> Prepared:
        """What a worker finds before the first round."""
        from fedplat_silo.trainer.ddp import Place
        from fedplat_silo.trainer.session import Session

        with tempfile.TemporaryDirectory(prefix="fedplat-doctor-") as folder:
            plan = one_batch(self.visit, self.spec, self.path, Path(folder))
            return Session(plan, Place(), lambda _phase, _share: None).prepared()

    @cached_property
    def rehearsal(self) -> Rehearsal:
        is_private, num_units = self.spec.privacy.is_private, self.prepared.num_units
        noise = planned_event(self.spec, num_units).noise_multiplier if is_private else None
        return rehearse(self.visit, self.spec, self.path, noise)

    def check_spec(self) -> Finding:
        names, silo = self.spec.silos.names, self.visit.home.name
        if names and silo not in names:
            return failed(
                f"the run is for {', '.join(names)}, not for {silo}", "Add it to [silos] names, or leave out."
            )
        return ok(f"{self.spec.name}: {self.spec.rounds.count} rounds, spec hash {self.spec.hash[:16]}")

    def check_policy(self) -> Finding:
        policy = self.visit.policy
        reason = policy.check(self.spec, len(self.spec.silos.names) or MAX_SILOS)
        if reason is not None:
            return failed(str(reason), f"It is in {self.visit.home.policy}: change that, or the spec.")
        if not policy.is_open(datetime.now().time()):
            return warning(
                f"the policy trains at {policy.allowed_hours} only, and it is {datetime.now():%H:%M} here",
                "Rounds before that are left out.",
            )
        waits = ", once somebody here has agreed: fedplat client approve" if policy.approval == "manual" else ""
        return ok(f"the policy allows this run{waits}")

    def check_task(self) -> Finding:
        with in_words(self.visit.log):
            found = identity(self.spec.task.name)
            self.task  # noqa: B018 (its options)
        return ok(f"{self.spec.task.name} {found.version}")

    def check_data(self) -> Finding:
        with in_words(self.visit.log):
            data = self.data
        patients = data.train.patients
        whose = f" of {len(set(patients.tolist()))} patients" if patients is not None else ", without a patient key"
        said = f"{len(data.train)} records to train on{whose}, {len(data.test)} to test"
        if data.warnings:
            odd = "; ".join(f"{reason} ({reason.hint})" for reason in data.warnings)
            return warning(f"{said}. But {odd}", "Is that as it should be? Ask whoever exported the data.")
        return ok(said)

    def check_model(self) -> Finding:
        with in_words(self.visit.log, tells_no_data=True):
            found = self.prepared
        size = sum(parameter.size for parameter in layout_from_wire(found.layout).parameters)
        if not self.spec.privacy.is_private:
            return ok(f"{size} parameters; the run has no differential privacy")
        unit = privacy_unit(self.spec)
        return ok(f"{size} parameters, which can be trained privately; {found.num_units} {unit}s to sample from")

    def check_budget(self) -> Finding:
        return check_budget(self.visit, self.spec, self.prepared.num_units)

    def check_dry_run(self) -> Finding:
        with in_words(self.visit.log):
            found = self.rehearsal
        return ok(
            f"one batch trained in {found.step_s:.2f} s on {found.device}, {found.num_workers} worker(s); "
            f"{show_size(found.size_bytes)} go each way in a round"
        )

    def check_round_time(self) -> Finding:
        steps = self._num_steps()
        takes_s, limit_s = self.rehearsal.round_s(steps), self.spec.rounds.timeout_s
        said = (
            f"about {takes_s:.1f} s for {steps} steps and the evaluation, without transfers; {limit_s:g} s are allowed"
        )
        if takes_s > limit_s:
            return failed(
                said,
                "Raise [rounds] timeout_s, train fewer epochs or steps, or use a GPU: updates would come too late.",
            )
        if takes_s > _SLOW_SHARE * limit_s:
            return warning(said, "Raise [rounds] timeout_s: the machine may be busier than now.")
        return ok(said)

    def _num_steps(self) -> int:
        from fedplat_silo.trainer.loop import steps_of_round

        if self.spec.privacy.is_private:
            return steps_per_round(self.spec, self.prepared.num_units)
        return steps_of_round(self.prepared.num_train, self.spec.training)
