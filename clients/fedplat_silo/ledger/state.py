"""What the book's entries add up to: populations, their budgets, and what each run spent of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from fedplat.ledger import Unit, from_wire
from fedplat.privacy import SampledGaussian
from fedplat_silo.ledger.entries import (
    NO_HASH,
    Behind,
    BudgetSet,
    Closed,
    Countersigned,
    Entry,
    ExclusionUsed,
    Genesis,
    Reconciled,
    Registered,
    Reserved,
    Spent,
)

Steps = Counter[tuple[float, float]]
"""Steps by (sampling rate, noise multiplier). `+` composes, `|` is the larger of two, `-` what is missing."""


def steps_of(events: Iterable[SampledGaussian]) -> Steps:
    """Events as counts of steps."""
    found: Steps = Counter()
    for event in events:
        found[event.sampling_rate, event.noise_multiplier] += event.num_steps
    return found


def events_of(steps: Steps) -> tuple[SampledGaussian, ...]:
    """Counts of steps as events."""
    return tuple(
        SampledGaussian(sampling_rate=rate, noise_multiplier=noise, num_steps=num_steps)
        for (rate, noise), num_steps in sorted(steps.items())
        if num_steps
    )


@dataclass(frozen=True, slots=True)
class Budget:
    """Epsilon at delta that each patient (or record) may be charged in all."""

    epsilon: float
    delta: float
    unit: Unit


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as it was last registered; `version` and `exclusion` are entries."""

    name: str
    population: str
    version: int
    patient_column: str | None
    num_records: int
    num_patients: int | None
    content: str
    exclusion: int | None = None
    exclusion_change: str | None = None


@dataclass(slots=True)
class RunBook:
    """A run's page. `spends` by (round, attempt); `first_seq`: its first reservation."""

    reserved: Reserved
    first_seq: int
    is_open: bool = True
    planned: Steps = field(default_factory=Counter)
    spends: dict[tuple[int, str], Spent] = field(default_factory=dict)
    spent: Steps = field(default_factory=Counter)

    @property
    def rest(self) -> Steps:
        """What the run may still spend of its reservation."""
        return self.planned - self.spent if self.is_open else Counter()


class State:
    """The sum of all entries so far. `apply` takes the next one."""

    def __init__(self) -> None:
        self.last: Entry | None = None
        self.genesis: Genesis | None = None
        self.datasets: dict[str, Dataset] = {}
        self.runs: dict[str, RunBook] = {}
        self.hashes: list[str] = []
        self.versions: dict[str, list[int]] = {}
        self.version_population: dict[int, str] = {}
        self.countersigned: Countersigned | None = None
        self.spent_when_countersigned: dict[str, Steps] = {}
        self.behind: list[Behind] = []
        self.reconciled_heads: set[str] = set()
        self.era = 0
        self._budgets: dict[str, list[Budget]] = {}
        self._merged_into: dict[str, str] = {}
        self._lost: dict[str, Steps] = {}

    def has(self, seq: int, head: str) -> bool:
        """Whether the book has exactly this entry."""
        return 0 < seq <= len(self.hashes) and self.hashes[seq - 1] == head

    def root(self, population: str) -> str:
        """The population that this one has become a part of, or itself."""
        while population in self._merged_into:
            population = self._merged_into[population]
        return population

    def population(self, dataset: str) -> str | None:
        """The population of a dataset; None if it is not registered."""
        found = self.datasets.get(dataset)
        return self.root(found.population) if found else None

    def populations(self) -> list[str]:
        """Every population, in the order of their first dataset."""
        everyone = [d.population for d in self.datasets.values()] + list(self._lost)
        return list(dict.fromkeys(map(self.root, everyone)))

    def datasets_of(self, population: str) -> list[Dataset]:
        """The datasets with patients of a population."""
        return [d for d in self.datasets.values() if self.root(d.population) == population]

    def runs_of(self, population: str) -> Iterator[RunBook]:
        """The runs that a population was, or may be, charged for."""
        return (run for run in self.runs.values() if self.root(run.reserved.population) == population)

    def budgets(self, population: str) -> list[Budget]:
        """All that have to be kept; several where populations that had one each turned out to be one."""
        return self._budgets.get(population, [])

    def spent(self, population: str) -> Steps:
        """What a population was charged."""
        return sum((run.spent for run in self.runs_of(population)), self.lost(population))

    def lost(self, population: str) -> Steps:
        """What it was charged, of that, for entries that were lost."""
        return sum((steps for p, steps in self._lost.items() if self.root(p) == population), Steps())

    def committed(self, population: str, without: str | None = None) -> Steps:
        """What it was charged and what open runs may still charge, but for the run `without`."""
        return self.spent(population) + sum(
            (run.rest for run in self.runs_of(population) if run.reserved.run != without), Steps()
        )

    def apply(self, entry: Entry) -> None:
        """The next entry. Raises ValueError if it does not follow the last one, or makes no sense after it."""
        last = len(self.hashes)
        if entry.seq != last + 1:
            raise ValueError(f"entry {last + 1} is missing")
        if entry.hash != entry.expected_hash:
            raise ValueError(f"entry {entry.seq} is not what was written")
        if entry.prev_hash != (self.hashes[-1] if self.hashes else NO_HASH):
            raise ValueError(f"entry {entry.seq} does not follow entry {last}: one of them was exchanged")
        try:
            self._apply(entry)
        except KeyError as error:
            raise ValueError(f"entry {entry.seq} speaks of what the book does not have") from error
        self.last = entry
        self.hashes.append(entry.hash)

    def _apply(self, entry: Entry) -> None:
        match entry.fields():
            case Genesis() as genesis:
                self.genesis = genesis
            case Registered() as registered:
                self._register(entry.seq, registered)
            case ExclusionUsed() as used:
                known = self.datasets[used.dataset]
                self.datasets[used.dataset] = replace(known, exclusion=entry.seq, exclusion_change=used.change)
            case BudgetSet() as budget:
                kept = Budget(budget.epsilon, budget.delta, budget.unit)
                self._budgets[self.root(budget.population)] = [kept]
            case Reserved() as reserved:
                self._reserve(entry.seq, reserved)
            case Spent() as spent:
                run = self.runs[spent.run]
                run.spends[spent.round, spent.attempt] = spent
                run.spent += steps_of(from_wire(spent.events))
            case Closed() as closed:
                self.runs[closed.run].is_open = False
            case Countersigned() as countersigned:
                self.countersigned = countersigned
                self.spent_when_countersigned = {p: self.spent(p) for p in self.populations()}
            case Behind() as behind:
                self.behind.append(behind)
            case Reconciled() as reconciled:
                self._reconcile(reconciled)

    def homeless(self) -> list[str]:
        """Populations that were charged for lost entries, and of which it is not known who they are."""
        housed = {self.root(d.population) for d in self.datasets.values()}
        return [p for p in dict.fromkeys(map(self.root, self._lost)) if p not in housed]

    def _register(self, seq: int, entry: Registered) -> None:
        known = self.datasets.get(entry.dataset)
        target = self.root(entry.population)
        self.versions.setdefault(entry.dataset, []).append(seq)
        self.version_population[seq] = entry.population
        for population in entry.merged:
            self._merge(self.root(population), target)
        self.datasets[entry.dataset] = Dataset(
            name=entry.dataset,
            population=entry.population,
            version=seq,
            patient_column=entry.patient_column,
            num_records=entry.num_records,
            num_patients=entry.num_patients,
            content=entry.content,
            exclusion=known.exclusion if known else None,
            exclusion_change=known.exclusion_change if known else None,
        )

    def _merge(self, source: str, target: str) -> None:
        if source == target:
            return
        self._merged_into[source] = target
        budgets = self._budgets.pop(source, []) + self._budgets.pop(target, [])
        if budgets:
            self._budgets[target] = list(dict.fromkeys(budgets))

    def _reserve(self, seq: int, entry: Reserved) -> None:
        run = self.runs.setdefault(entry.run, RunBook(entry, seq))
        run.reserved, run.is_open = entry, True
        run.planned = steps_of(from_wire(entry.events))

    def _reconcile(self, entry: Reconciled) -> None:
        for charge in entry.charges:
            known = self.population(charge.dataset)
            population = self.root(charge.population if known is None else known)
            self._lost[population] = self._lost.get(population, Steps()) + steps_of(from_wire(charge.events))
            if charge.budget is not None:
                then = Budget(charge.budget.epsilon, charge.budget.delta, charge.budget.unit)
                self._budgets[population] = list(dict.fromkeys([*self.budgets(population), then]))
        for run in entry.closed:
            self.runs[run].is_open = False
        self.era = entry.era
        self.behind.clear()
        self.reconciled_heads.update(entry.heads)
