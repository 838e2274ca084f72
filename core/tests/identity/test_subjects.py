"""Which files of a configuration are compared between processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest

from hekaton.config import JobConfig
from hekaton.config.base import MayDiffer, PathField, SectionModel
from hekaton.config.sections.mixture import MixtureSection
from hekaton.identity.subjects import named_files


class Entry(SectionModel):
    path: PathField | None = None


class Files(SectionModel):
    one: PathField = ""
    several: list[PathField] = []  # noqa: RUF012, pydantic copies it
    or_none: list[PathField] | None = None
    by_name: dict[str, PathField] = {}  # noqa: RUF012
    entries: list[Entry] = []  # noqa: RUF012
    own: Annotated[PathField, MayDiffer("each process has its own")] = ""
    text: str = ""


class Config(JobConfig):
    files: Files = Files()
    mixture: MixtureSection = MixtureSection()


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "file"
    path.write_text("content")
    return str(path)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("one", "files.one"),
        ("several", "files.several[1]"),
        ("or_none", "files.or_none[1]"),
        ("by_name", "files.by_name.x"),
        ("entries", "files.entries[0].path"),
    ],
)
def test_each_form_of_a_path_is_compared_by_content(file: str, field: str, name: str) -> None:
    forms = {"one": file, "by_name": {"x": file}, "entries": [{"path": file}]}
    value = forms.get(field, ["a folder that is not there", file])
    files = Files.model_validate({field: value})
    (named,) = named_files(Config(files=files))
    assert named == f"{name}: content"


def test_what_may_differ_is_no_path_or_is_not_there_is_left_out(file: str, tmp_path: Path) -> None:
    files = Files(own=file, text=file, one=str(tmp_path / "none"), several=[str(tmp_path)])
    assert named_files(Config(files=files)) == {}


def test_files_of_the_sources_of_a_mixture_are_compared(file: str) -> None:
    sources = [{"dataset": "text", "dataset_path": file}]
    (named,) = named_files(Config(mixture=MixtureSection.model_validate({"sources": sources})))
    assert named == "mixture.sources[0].dataset_path: content"
