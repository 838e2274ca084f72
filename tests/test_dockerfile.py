"""The image has what it copies, and a base of one version."""

from __future__ import annotations

import re


def test_the_base_is_one_version_of_cuda(repository):
    (base,) = re.findall(r"^FROM (\S+)$", (repository / "Dockerfile").read_text(), re.MULTILINE)
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d\d\.\d\d", base)


def test_what_is_copied_is_there_and_not_ignored(repository):
    copied = re.findall(r"^COPY (\S+) ", (repository / "Dockerfile").read_text(), re.MULTILINE)
    let_through = (repository / ".dockerignore").read_text().splitlines()
    for path in copied:
        assert (repository / path).exists()
        assert f"!{path}" in let_through
    editable = re.findall(r"^-e \./(\w+)", (repository / "requirements.txt").read_text(), re.MULTILINE)
    assert set(editable) <= set(copied)
