"""Each variable and each setting that makes libraries compute otherwise is compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from hekaton.config import load
from hekaton.identity.built import contributed_values
from hekaton.identity.variables import VARIABLES, settings_of_torch

NAMES = [
    "CUBLASLT_WORKSPACE_SIZE",
    "CUBLAS_WORKSPACE_CONFIG",
    "DISABLE_ADDMM_CUDA_LT",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NCCL_ALGO",
    "NCCL_BUFFSIZE",
    "NCCL_COLLNET_ENABLE",
    "NCCL_LL128_BUFFSIZE",
    "NCCL_LL_BUFFSIZE",
    "NCCL_NTHREADS",
    "NCCL_NVLS_ENABLE",
    "NCCL_PROTO",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "PYTORCH_TUNABLEOP_ENABLED",
    "TORCHDYNAMO_DISABLE",
    "TORCHINDUCTOR_BATCH_INVARIANT",
    "TORCHINDUCTOR_COORDINATE_DESCENT_TUNING",
    "TORCHINDUCTOR_CPP_ENABLE_FLOATING_POINT_CONTRACT_FLAG",
    "TORCHINDUCTOR_CPP_ENABLE_UNSAFE_MATH_OPT_FLAG",
    "TORCHINDUCTOR_DETERMINISTIC",
    "TORCHINDUCTOR_EMULATE_DIVISION_ROUNDING",
    "TORCHINDUCTOR_EMULATE_PRECISION_CASTS",
    "TORCHINDUCTOR_MAX_AUTOTUNE",
    "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM",
    "TORCHINDUCTOR_MAX_AUTOTUNE_POINTWISE",
    "TORCHINDUCTOR_USE_FAST_MATH",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "TORCH_COMPILE_DISABLE",
    "TRITON_F32_DEFAULT",
]
BACKENDS: Any = torch.backends
CUDA: Any = BACKENDS.cuda
CUDNN: Any = BACKENDS.cudnn
MKLDNN: Any = BACKENDS.mkldnn
SETTINGS: dict[str, tuple[Callable[[Any], None], Any, Any]] = {
    "torch.get_default_dtype()": (torch.set_default_dtype, torch.float64, torch.float32),
    "torch.are_deterministic_algorithms_enabled()": (torch.use_deterministic_algorithms, True, False),
    "torch.backends.cuda.matmul.fp32_precision": (torch.set_float32_matmul_precision, "high", "highest"),
    "torch.backends.cuda.flash_sdp_enabled()": (CUDA.enable_flash_sdp, False, True),
    "torch.backends.cuda.math_sdp_enabled()": (CUDA.enable_math_sdp, False, True),
    "torch.backends.cuda.mem_efficient_sdp_enabled()": (CUDA.enable_mem_efficient_sdp, False, True),
    "torch.backends.cuda.cudnn_sdp_enabled()": (CUDA.enable_cudnn_sdp, False, True),
    "denormal numbers are": (torch.set_flush_denormal, True, False),
}
"""A setting -> what sets it, to another value, and back."""
ATTRIBUTES = {
    "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction": (CUDA.matmul, False),
    "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction": (CUDA.matmul, False),
    "torch.backends.cudnn.enabled": (CUDNN, False),
    "torch.backends.cudnn.benchmark": (CUDNN, True),
    "torch.backends.cudnn.deterministic": (CUDNN, True),
    "torch.backends.cudnn.conv.fp32_precision": (CUDNN.conv, "ieee"),
    "torch.backends.mkldnn.enabled": (MKLDNN, False),
    "torch.backends.mkldnn.matmul.fp32_precision": (MKLDNN.matmul, "bf16"),
}
"""A setting that is an attribute -> of what, and another value."""


@pytest.fixture(scope="module")
def values() -> Callable[[], dict[str, Any]]:
    loaded = load([], [])
    return lambda: contributed_values(loaded.config, loaded.plugins)


def test_these_variables_are_in_the_table() -> None:
    assert sorted(NAMES) == sorted(VARIABLES)


@pytest.mark.parametrize("name", NAMES)
def test_a_variable_is_compared(
    name: str, values: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    without = values()
    for value in ("0", "1"):
        monkeypatch.setenv(name, value)
        assert values() == without | {f"environment.{name}": value}


def test_all_settings_are_tested() -> None:
    assert settings_of_torch().keys() == SETTINGS.keys() | ATTRIBUTES.keys()


@pytest.mark.parametrize("name", [*SETTINGS, *ATTRIBUTES])
def test_a_setting_is_compared(name: str) -> None:
    if name in ATTRIBUTES:
        of, value = ATTRIBUTES[name]
        attribute = name.rpartition(".")[2]
        change, back = partial(setattr, of, attribute), getattr(of, attribute)
    else:
        change, value, back = SETTINGS[name]
    before = settings_of_torch()
    change(value)
    try:
        assert settings_of_torch()[name] != before[name]
    finally:
        change(back)
    assert settings_of_torch() == before
