"""What `fedplat doctor` looks at in a hospital."""

from __future__ import annotations

from collections.abc import Iterator

from fedplat.doctor import Asked, Subject
from fedplat.home import SiloHome
from fedplat_silo.doctor import devices, local, network, study
from fedplat_silo.doctor.visit import Visit
from fedplat_silo.options import parse_gpus


def subjects(asked: Asked) -> Iterator[Subject]:
    """The silo that is asked for, or all that are in the home. Raises WireError, click.BadParameter."""
    if asked.silo is not None:
        names = [asked.silo]
    elif asked.server:
        names = []
    else:
        names = sorted(path.name for path in (asked.root / "silos").glob("*") if path.is_dir())
    gpus = parse_gpus(asked.gpus)
    for name in names:
        visit = Visit(SiloHome(asked.root, name), asked.data, gpus, asked.num_workers)
        checks = [*local.checks(visit), *network.checks(visit), devices.check(visit)]
        if asked.spec is not None:
            checks += study.checks(visit, asked.spec)
        yield Subject(f"silo {name} in {visit.home.path}", tuple(checks))
