from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedplat.errors import DataError
from fedplat_silo.datasets import _to_toml, load_datasets, parse_dataset, remember_datasets
from fedplat_silo.toml import read_toml


def test_what_was_named_once_is_remembered(tmp_path: Path) -> None:
    file, heart, chest = tmp_path / "datasets.toml", tmp_path / "heart.csv", tmp_path / 'a "chest" \\ of Ümläute'
    heart.touch()
    chest.mkdir()
    assert load_datasets(file) == {}
    remember_datasets(file, [f"heart={heart}"])
    both = {"heart": heart, "chest": chest}
    assert remember_datasets(file, [f"chest={chest}"]) == both
    assert load_datasets(file) == both
    assert file.stat().st_mode & 0o777 == 0o600
    assert remember_datasets(file, [f"heart={chest}"])["heart"] == chest, "the last word counts"


def test_relative_paths_mean_the_folder_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heart.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert parse_dataset("heart=heart.csv") == ("heart", tmp_path / "heart.csv")


@pytest.mark.parametrize("argument", ["heart", "=x", "heart=", "a b=/tmp", "heart=/no/such/file", "heart=/\udcff"])
def test_nonsense_is_refused_at_the_door(argument: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_dataset(argument)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["heart = ", "heart = 3", "[heart]\npath = 'x'"])
def test_a_broken_file_says_so(tmp_path: Path, text: str) -> None:
    file = tmp_path / "datasets.toml"
    file.write_text(text)
    with pytest.raises(DataError, match=r"datasets\.toml cannot be read"):
        load_datasets(file)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_path_survives_the_file(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text(_to_toml({"x": Path(text)}), encoding="utf-8", newline="")
    assert read_toml(file, DataError, "") == {"x": str(Path(text))}
