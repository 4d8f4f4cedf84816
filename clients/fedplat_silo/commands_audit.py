"""`fedplat client audit`: attacks the silo's own DP-SGD, offline, and keeps what it found."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedplat_silo.options import as_json as _as_json
from fedplat_silo.options import home_of, one_silo

if TYPE_CHECKING:
    from fedplat.report.material import AuditFacts
    from fedplat.spec import RunSpec

_MOST_STEPS = 2000
_SPEC = click.Path(path_type=Path, dir_okay=False)


@click.command()
@one_silo
@click.option("--spec", "spec_file", required=True, type=_SPEC, metavar="study.toml", help="The run spec.")
@click.option("--dataset", metavar="NAME", help="A dataset that `join --data` has named  [the spec's]")
@click.option(
    "--steps", type=click.IntRange(1), default=_MOST_STEPS, show_default=True, help="Of the plan, try so many at most."
)
@_as_json
@click.pass_context
def audit(
    context: click.Context,
    silo: str | None,
    home: str | None,
    spec_file: Path,
    dataset: str | None,
    steps: int,
    as_json: bool,
) -> None:
    """Attack this silo's private training with made-up patients, to see whether it keeps its promise. Offline: nothing
    leaves, and no budget is spent. Ends with status 1 if it does not keep it."""
    from fedplat.spec import load_spec
    from fedplat_silo.audit import auditing
    from fedplat_silo.audit.records import keep

    place, spec = home_of(silo, home), load_spec(spec_file)
    _check_dataset(spec, dataset)
    with _progress(is_shown=not as_json) as report:
        found = auditing.audit(place, spec, steps, report)
    path = keep(place, found)
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(_describe(found, path)))
    if not found.passed:
        context.exit(1)


def _check_dataset(spec: RunSpec, dataset: str | None) -> None:
    from fedplat.errors import DataError

    if dataset not in (None, spec.data.name):
        raise DataError(
            f"the spec asks for the dataset {spec.data.name!r}, not {dataset!r}",
            hint=f"Write --dataset {spec.data.name}.",
        )


@contextmanager
def _progress(*, is_shown: bool) -> Iterator[Callable[[float], None]]:
    """On standard error, where it is a terminal."""
    if not (is_shown and sys.stderr.isatty()):
        yield lambda share: None
        return
    with click.progressbar(length=100, label="auditing", show_eta=False, file=sys.stderr) as bar:
        yield lambda share: bar.update(int(100 * share) - bar.pos)


def _describe(found: AuditFacts, path: Path) -> Iterator[str]:
    from fedplat.report.audits import one_in, say_down, say_notice
    from fedplat.report.wording import say

    yield (
        f"dataset {found.dataset}, {found.num_steps} steps of the {found.num_planned_steps} planned: sampling rate"
        f" {found.sampling_rate:.4g}, noise multiplier {found.noise_multiplier:g}"
    )
    yield f"  attacked by {found.num_canaries} made-up {found.unit}s, {found.num_included} of them in, by a coin each"
    yield f"  promised: epsilon at most  {say(found.claimed_epsilon)} at delta {found.delta:g}, for these steps"
    yield (
        f"  found:    epsilon at least {say_down(found.gaussian_epsilon)} (Gaussian fit),"
        f" {say_down(found.one_run_epsilon)} (one run), {found.confidence:.0%} confidence"
    )
    if found.passed:
        yield "passed: the attack found no more than the promise allows"
        yield f"  In nine audits of ten it would have noticed: {say_notice(found.noticed_noise_factor)}."
    else:
        yield "FAILED: the attack found more than the promise allows"
        yield f"  Software that keeps its promise fails one audit in {one_in(found.confidence)} at most. Audit again;"
        yield "  if it fails twice, train nothing privately here (fedplat client pause), and report it with this file:"
    yield f"  {path}"
    yield "  `fedplat report privacy` shows it. Nothing has left this silo, and no budget was spent."
