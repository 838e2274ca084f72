"""What differs between versions of torch and Python: the right call on each, and nothing printed."""

from __future__ import annotations

import gc
import io
import sys
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from hekaton import torch_versions


@pytest.mark.parametrize("has_public", [True, False])
def test_the_timeout_is_set_by_the_public_function_where_there_is_one(
    has_public: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    if has_public:
        monkeypatch.setattr(
            dist, "set_timeout", lambda *given: asked.append(("public", *given)), raising=False
        )
    else:
        monkeypatch.delattr(dist, "set_timeout", raising=False)
    monkeypatch.setattr(
        distributed_c10d, "_set_pg_timeout", lambda *given: asked.append(("private", *given)), raising=False
    )
    group: Any = object()
    torch_versions.set_group_timeout(7, group)
    assert asked == [("public" if has_public else "private", timedelta(seconds=7), group)]


def test_a_group_gets_the_timeout(tmp_path: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch_versions.set_group_timeout(77, dist.group.WORLD)
        backend: Any = dist.group.WORLD._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timedelta(seconds=77)
    finally:
        dist.destroy_process_group()


def test_an_item_leaves_its_file_open_and_a_closed_file_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.13 hands errors of a finaliser to ``sys.unraisablehook``; this one is left without an error."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    file = io.BytesIO()
    stream, transforms = torch_versions.NoTransforms().transform_save_stream(None, file)
    stream.write(b"first")
    stream.close()
    second, _ = torch_versions.NoTransforms().transform_save_stream(None, file)
    second.write(b", second")
    assert (file.getvalue(), transforms) == (b"first, second", [])
    file.close()
    del second
    gc.collect()
    assert unraisable == []


def test_slow_guards_are_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._dynamo import config

    caplog.set_level("INFO", "hekaton")
    with config.patch(issue_3_13_0_warning=True):
        monkeypatch.setattr(sys, "version_info", (3, 12, 4, "final", 0))
        torch_versions.log_slow_guards()
        assert not caplog.messages
        monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
        torch_versions.log_slow_guards()
        torch_versions.log_slow_guards()
        assert len(caplog.messages) == 1
        assert config.issue_3_13_0_warning is False
        monkeypatch.undo()
