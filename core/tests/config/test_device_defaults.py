"""The default precision on a CPU with and without instructions for bfloat16."""

from __future__ import annotations

import pytest
import torch

from hekaton import processor
from hekaton.config.device_defaults import for_device
from hekaton.rules import check

TOML = "[lr_scheduler]\nwarmup_steps = 0\n[training]\nsteps = 1\n"
EXPLICIT = f'{TOML}mixed_precision_param = "bfloat16"\n'
WEIGHTS = f'{TOML}dtype = "bfloat16"\n'
DEFAULT_NOTICE = (
    "training.mixed_precision_param is float32 by default on this CPU, which has no instructions for bfloat16 "
    "(AVX512-BF16, AMX)"
)


@pytest.fixture(params=["torch", "/proc/cpuinfo"])
def has(request, monkeypatch, tmp_path):
    """``has("avx2", "amx_bf16")`` gives the CPU these instructions."""

    def has(*names: str) -> None:
        processor.has_fast_bfloat16.cache_clear()
        if request.param == "torch":
            found = {"avx512_bf16": False, "l1d_cache_size": 32768, **dict.fromkeys(names, True)}
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
        else:
            monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
            file = tmp_path / "cpuinfo"
            file.write_text(f"model name\t: a CPU\nflags\t\t: fpu {' '.join(names)}\n")
            monkeypatch.setattr(processor, "CPUINFO", file)

    yield has
    processor.has_fast_bfloat16.cache_clear()


def precision(load_run, toml: str, device_type: str = "cpu") -> tuple[str, list[str]]:
    """The precision that a run computes in, and the notices about precision."""
    loaded = for_device(load_run(toml), device_type)
    notices = [*loaded.notices, *check(loaded, world_size=1, device_type=device_type)]
    return loaded.config.training.mixed_precision_param, [said for said in notices if "float" in said]


def test_a_cpu_without_bfloat16_computes_in_float32(load_run, has):
    has("avx2", "avx512f")
    assert precision(load_run, TOML) == ("float32", [DEFAULT_NOTICE])
    assert precision(load_run, TOML, "cuda") == ("bfloat16", [])


@pytest.mark.parametrize("toml", [EXPLICIT, WEIGHTS])
def test_bfloat16_that_is_asked_for_stays_and_is_noticed(load_run, has, toml):
    has("avx2")
    used, (notice,) = precision(load_run, toml)
    assert used == "bfloat16"
    assert notice.endswith("(AVX512-BF16, AMX), and takes about ten times as long as in float32")


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
@pytest.mark.parametrize("toml", [TOML, EXPLICIT, WEIGHTS])
def test_a_cpu_with_bfloat16_computes_in_it(load_run, has, name, toml):
    has("avx2", name)
    assert precision(load_run, toml) == ("bfloat16", [])
