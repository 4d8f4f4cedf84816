"""One rank's task, data and model, from the first round of a run to the last."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fedplat.errors import DataError, LayoutError
from fedplat.metrics import MetricSums
from fedplat.params import Group, Layout, Parameter, Vector
from fedplat.reasons import Code, Reason
from fedplat.seeds import Purpose, derive_seed
from fedplat.spec.model import RunSpec
from fedplat.spec.privacy import PrivateMetrics
from fedplat.wire.http import Phase
from fedplat.wire.messages import layout_to_wire
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.exclusion import Exclusion, read_exclusion
from fedplat_silo.data.source import DataSource
from fedplat_silo.data.tables import unreadable
from fedplat_silo.tasks import registry
from fedplat_silo.tasks.base import Task
from fedplat_silo.trainer.checkpoint import Checkpoints, Key
from fedplat_silo.trainer.ddp import Place, copy_from_first, wrap
from fedplat_silo.trainer.dp.metrics import NoisedMetrics
from fedplat_silo.trainer.dp.preparing import Preparation, prepare
from fedplat_silo.trainer.local import LocalStore
from fedplat_silo.trainer.loop import LocalRound, empty_sums, evaluate
from fedplat_silo.trainer.messages import Command, Done, Prepared
from fedplat_silo.trainer.plan import TrainingPlan

log = logging.getLogger(__name__)
Report = Callable[[Phase, float], None]


class Session:
    """Executes the parent's commands. Everything is allocated once."""

    def __init__(self, plan: TrainingPlan, place: Place, report: Report) -> None:
        self.plan, self.place = plan, place
        self._report = report
        self.task = load_task(plan.spec)
        self.data = self.task.load(DataSource(plan.data, plan.spec.data, _excluded(plan)))
        model = self._build_model().to(place.device)
        self.layout = find_layout(model, plan.spec)
        frozen = self.layout.names(Group.FROZEN)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in frozen)
        self._module = model
        self._state = dict(model.state_dict(keep_vars=True))
        is_private = plan.spec.privacy.is_private
        self._private = prepare(self.task, model, self.data.train, plan.spec) if is_private else None
        is_noised = plan.spec.privacy.metrics is PrivateMetrics.NOISED
        self._noised = NoisedMetrics(self.task, model, self.data, place) if is_noised else None
        # gradients are summed and noised by the loop there, never averaged as they come
        self._model = model if is_private else wrap(model, place)
        self._local_store = LocalStore(plan.run_dir)
        self._first_local = {k: t.clone() for k, t in self._local.items()}

    def prepared(self) -> Prepared:
        """What the parent has to know about this silo's data and model; warnings, which tell of the data, stay in the
        log where training is private."""
        for warning in self.data.warnings if self._private else ():
            log.warning("%s", warning)
        return Prepared(
            layout=layout_to_wire(self.layout),
            frozen_hash=hash_tensors([self._state[name] for name in self.layout.names(Group.FROZEN)]),
            num_train=len(self.data.train),
            num_test=len(self.data.test),
            warnings=() if self._private else self.data.warnings,
            torch_version=str(torch.__version__),
            device=self.place.device.type,
            num_units=len(self._private.units) if self._private else 0,
            empty_sums=self._empty_sums(),
        )

    def _empty_sums(self) -> MetricSums | None:
        if not self.plan.spec.secure_aggregation.enabled:
            return None
        if self._noised:
            return self._noised.nothing
        return empty_sums(self.task, self._module, self.data.train, self.place)

    def write_initial(self, out: Vector) -> Done:
        """The shared parameters of a new model."""
        state = self._build_model().state_dict()
        for name, view in self.layout.split(out).items():
            torch.from_numpy(view).copy_(state[name])
        return Done()

    def train(self, command: Command, weights: Vector, out: Vector) -> Done:
        """Measures the received weights if asked, trains, and writes the update.

        Refused if it is not finite, or larger than the spec allows.
        """
        received = {name: torch.from_numpy(view) for name, view in self.layout.split(weights).items()}
        self._restore(received, before=command.round)
        begin = time.perf_counter()
        evaluated = self._evaluate() if command.evaluate else None
        middle, busy = time.perf_counter(), time.process_time()
        work = self._local_round(command, received, self._checkpoints(command, weights))
        trained = self.task.train_round(work)
        busy_s, end = time.process_time() - busy, time.perf_counter()
        self._write_update(received, out)
        self._keep_local(command.round)
        return Done(
            trained=self._noised.nothing if self._noised else trained,
            evaluated=evaluated,
            training_s=end - middle,
            evaluating_s=middle - begin,
            busy_s=busy_s if self.place.device.type == "cpu" else end - middle - work.waited_s,
            num_recovered=work.num_recovered,
            num_private_steps=work.num_private_steps,
            sampling_rate=work.private.sampling_rate if work.private else 0.0,
            noise_multiplier=work.private.noise_multiplier if work.private else 0.0,
            metrics_noise_multiplier=self._metrics_noise(evaluated),
        )

    def evaluate(self, command: Command, weights: Vector) -> Done:
        """Measures the received weights, with the local parameters as they are after `command.round`."""
        received = {name: torch.from_numpy(view) for name, view in self.layout.split(weights).items()}
        self._restore(received, before=command.round + 1)
        begin = time.perf_counter()
        evaluated = self._evaluate()
        return Done(
            evaluated=evaluated,
            evaluating_s=time.perf_counter() - begin,
            metrics_noise_multiplier=self._metrics_noise(evaluated),
        )

    @property
    def preparation(self) -> Preparation | None:
        """What every round of a private run has in common."""
        return self._private

    @property
    def _local(self) -> dict[str, Tensor]:
        return {name: self._state[name].detach() for name in self.layout.names(Group.LOCAL)}

    def _build_model(self) -> nn.Module:
        torch.manual_seed(derive_seed(self.plan.spec.seed, "", 0, Purpose.MODEL))
        return self.task.build_model()

    @torch.no_grad()
    def _restore(self, received: dict[str, Tensor], before: int) -> None:
        for name, tensor in received.items():
            self._state[name].copy_(tensor)
        if self._first_local:
            newest = self._local_store.newest_before(before)
            stored = self._local_store.load(newest) if newest else self._first_local
            for name, tensor in self._local.items():
                tensor.copy_(stored[name])

    def _evaluate(self) -> MetricSums | None:
        is_hidden = self.plan.spec.privacy.metrics is PrivateMetrics.NONE
        if is_hidden or not len(self.data.test):
            return None
        self._report(Phase.EVALUATING, 0.0)
        if self._noised:
            return self._noised.measure(lambda share: self._report(Phase.EVALUATING, share))
        return evaluate(
            self.task,
            self._module,
            self.data.test,
            self.plan.spec.training,
            self.place,
            lambda share: self._report(Phase.EVALUATING, share),
        )

    def _metrics_noise(self, evaluated: MetricSums | None) -> float:
        return self._noised.noise_multiplier if self._noised and evaluated is not None else 0.0

    def _checkpoints(self, command: Command, weights: Vector) -> Checkpoints | None:
        """Where the round can go on after a kill, if the spec wants that."""
        plan = self.plan
        if plan.spec.training.local_checkpoint_steps is None:
            return None
        key = Key(
            run=plan.run_dir.name,
            round=command.round,
            spec_hash=plan.spec.hash,
            weights=hashlib.sha256(weights.data).hexdigest(),
            num_examples=len(self.data.train),
            num_ranks=self.place.num_ranks,
            device=self.place.device.type,
            software=(str(torch.__version__), registry.identity(plan.spec.task.name).sha256),
        )
        return Checkpoints(plan.checkpoint_dir, key, self.place)

    def _local_round(
        self, command: Command, received: dict[str, Tensor], checkpoints: Checkpoints | None
    ) -> LocalRound:
        spec, silo = self.plan.spec, self.plan.silo
        self._report(Phase.TRAINING, 0.0)
        torch.manual_seed(derive_seed(spec.seed, silo, command.round, Purpose.TRAINING) + self.place.rank)
        return LocalRound(
            model=self._model,
            examples=self.data.train,
            training=spec.training,
            seed=derive_seed(spec.seed, silo, command.round, Purpose.BATCHES),
            place=self.place,
            received=received,
            proximal_mu=command.proximal_mu,
            report=lambda share: self._report(Phase.TRAINING, share),
            checkpoints=checkpoints,
            private=self._private.terms(command.noise_multiplier) if self._private else None,
        )

    @torch.no_grad()
    def _write_update(self, received: dict[str, Tensor], out: Vector) -> None:
        # Buffers that each rank has of its own (running means) are those of rank 0.
        copy_from_first(list(self._module.buffers()), self.place)
        if self.place.rank:
            return
        for name, view in self.layout.split(out).items():
            update = torch.from_numpy(view)
            torch.sub(self._state[name].float().cpu(), received[name], out=update)
            # one pass and no temporary, unlike isfinite().all(): NaN and infinity show in the extremes
            if update.numel() and not torch.stack(update.aminmax()).isfinite().all():
                raise Refused(Reason.of(Code.UPDATE_NOT_FINITE), f"the update of {name!r} is not finite")
        self._check_norm(out)

    def _check_norm(self, update: Vector) -> None:
        limit = self.plan.spec.training.max_update_norm
        if limit is None:
            return
        norm = float(torch.linalg.vector_norm(torch.from_numpy(update), dtype=torch.float64))
        if norm > limit:
            raise Refused(Reason.of(Code.UPDATE_TOO_LARGE), f"the update's norm is {norm:g}, the limit {limit:g}")

    def _keep_local(self, round_number: int) -> None:
        if self._first_local and self.place.rank == 0:
            self._local_store.save(round_number, self._local)


def _excluded(plan: TrainingPlan) -> Exclusion:
    """Who opted out. Refused with DATASET_UNREADABLE if that cannot be read: then nobody is trained on."""
    if plan.exclude is None:
        return Exclusion()
    try:
        return read_exclusion(plan.exclude)
    except DataError as error:
        raise unreadable(plan.spec.data.name, error.message) from None


def load_task(spec: RunSpec) -> Task[Any]:
    """The spec's task, with its options. Refused with TASK_MISSING or TASK_OPTIONS."""
    task = registry.load(spec.task.name)
    try:
        return task(spec)
    except ValidationError as error:
        raise Refused(Reason.of(Code.TASK_OPTIONS, task=spec.task.name), str(error)) from None


def find_layout(model: nn.Module, spec: RunSpec) -> Layout:
    """The layout of the model's parameters and buffers. Refused with LAYOUT if the groups do not fit it."""
    state = model.state_dict()
    parameters = [Parameter(n, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in state.items()]
    try:
        return Layout.assign(parameters, spec.model)
    except LayoutError as error:
        raise Refused(Reason.of(Code.LAYOUT), str(error)) from None


def hash_tensors(tensors: list[Tensor]) -> str:
    """SHA-256 over the bytes of the tensors, in order; "" for none."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if tensors else ""
