"""`fedplat doctor` as people type it, on machines where all is well and where the other side has changed its mind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedplat.doctor import Level
from fedplat.home import SiloHome
from fedplat.identity import fingerprint, new_key, save_key
from fedplat_silo.membership import load_membership, save_membership
from tests.support.federation import Federation, federation
from tests.unit.doctor.scene import expect, line, patients, silo, study, write_patients

SILO = "hospital-a"


@pytest.fixture(scope="module")
def fed() -> Iterator[Federation]:
    with federation() as made:
        data = write_patients(made.folder / "heart.csv", patients(200))
        made.join(SILO, data={"heart": data})
        yield made


def doctor(fed: Federation, *words: str) -> tuple[int, Any]:
    done = fed.attempt("doctor", *words, "--json")
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def levels(told: Any) -> dict[str, str]:
    return {line["check"]: f"{line['level']}: {line['found']}" for line in told["subjects"][0]["checks"]}


def test_nothing_is_wrong_with_a_server_that_runs(fed: Federation) -> None:
    status, told = doctor(fed, "--server")
    found = levels(told)
    assert {check: said for check, said in found.items() if not said.startswith("ok: ")} == {}
    assert (status, told["ok"]) == (0, True)
    assert f"pid {fed.processes['server'].pid}" in found["process"]
    assert "with its own certificate" in found["port"]


def test_nothing_is_wrong_with_a_silo_that_runs(fed: Federation) -> None:
    """All there is, with a private run; without GPUs it says so, and is well."""
    private = '[strategy]\nweighting = "uniform"\n[privacy]\nmode = "record"\nmetrics = "none"\nepsilon = 8.0\n'
    spec = study(fed.folder / "study.toml", more=f"{private}delta = 1e-3")
    status, told = doctor(fed, "--silo", SILO, "--spec", str(spec), "--home", str(fed.folder / "silos"))
    found = levels(told)
    assert {check: said for check, said in found.items() if not said.startswith("ok: ")} == {}
    assert (status, told["ok"]) == (0, True)
    assert "all-reduce of" in found["workers"]
    assert "its process is connected" in found["membership"]
    assert "one batch trained in" in found["dry run"]
    assert fed.connected(SILO), "it was not disturbed"


def test_whatever_is_here_is_found_and_read_like_a_page(fed: Federation) -> None:
    done = fed.attempt("doctor")
    assert done.returncode == 0, done.stdout
    title, *lines, last = done.stdout.splitlines()
    assert title == f"server in {fed.folder / 'server' / 'server'}"
    assert last == f"{len(lines)} ok"
    assert all(each.startswith("  ok        ") for each in lines)


def copy(fed: Federation, root: Path) -> SiloHome:
    """The silo's home, for a look that does not disturb its process."""
    home = SiloHome(root, SILO)
    shutil.copytree(fed.silo_home(SILO), home.path)
    (home.path / "status.json").unlink(missing_ok=True)
    for folder in (home.path, *home.folders()):
        folder.chmod(0o700)
    return home


def test_a_key_that_is_not_the_one_that_the_server_knows(fed: Federation, tmp_path: Path) -> None:
    home = copy(fed, tmp_path)
    expect(line(silo(home), "membership"), Level.OK, "its process is connected")
    key, member = new_key(), load_membership(home)
    place = member.place.model_copy(update={"key_fingerprint": fingerprint(key.public_key())})
    save_membership(home, type(member)(member.silo, place, member.ca_pem, key))
    expect(line(silo(home), "membership"), Level.FAILED, "signature")
    save_key(member.key, home.key)


def test_a_silo_that_was_revoked_and_one_that_nobody_knows(fed: Federation, tmp_path: Path) -> None:
    home = copy(fed, tmp_path)
    fed.ask(f"/silos/{SILO}/revoke", {})
    expect(line(silo(home), "membership"), Level.FAILED, f"silo {SILO} was revoked", "fedplat silo invite")
    home.path.rename(home.path.with_name("hospital-x"))
    other = SiloHome(tmp_path, "hospital-x")
    expect(line(silo(other), "membership"), Level.FAILED, "no silo hospital-x is enrolled here", "invite")
