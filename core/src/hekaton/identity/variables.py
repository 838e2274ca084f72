"""What of a process's environment is compared, and what is not, each with the reason."""

from __future__ import annotations

import os
from typing import Any

import torch

from hekaton.identity.values import plain

_OTHER_RESULTS = "products are computed otherwise"
_OTHER_CODE = "compiled code computes otherwise"
_WAITS = "with other algorithms, protocols or sizes ranks wait for each other"
VARIABLES = {
    "CUBLASLT_WORKSPACE_SIZE": _OTHER_RESULTS,
    "CUBLAS_WORKSPACE_CONFIG": _OTHER_RESULTS,
    "DISABLE_ADDMM_CUDA_LT": _OTHER_RESULTS,
    "DNNL_DEFAULT_FPMATH_MODE": _OTHER_RESULTS,
    "DNNL_MAX_CPU_ISA": _OTHER_RESULTS,
    "MKL_CBWR": _OTHER_RESULTS,
    "MKL_ENABLE_INSTRUCTIONS": _OTHER_RESULTS,
    "NCCL_ALGO": _WAITS,
    "NCCL_BUFFSIZE": _WAITS,
    "NCCL_COLLNET_ENABLE": _WAITS,
    "NCCL_LL128_BUFFSIZE": _WAITS,
    "NCCL_LL_BUFFSIZE": _WAITS,
    "NCCL_NTHREADS": _WAITS,
    "NCCL_NVLS_ENABLE": _WAITS,
    "NCCL_PROTO": _WAITS,
    "NVIDIA_TF32_OVERRIDE": _OTHER_RESULTS,
    "ONEDNN_DEFAULT_FPMATH_MODE": _OTHER_RESULTS,
    "ONEDNN_MAX_CPU_ISA": _OTHER_RESULTS,
    "PYTORCH_TUNABLEOP_ENABLED": _OTHER_RESULTS,
    "TORCHDYNAMO_DISABLE": "models are not compiled",
    "TORCHINDUCTOR_BATCH_INVARIANT": _OTHER_CODE,
    "TORCHINDUCTOR_COORDINATE_DESCENT_TUNING": _OTHER_CODE,
    "TORCHINDUCTOR_CPP_ENABLE_FLOATING_POINT_CONTRACT_FLAG": _OTHER_CODE,
    "TORCHINDUCTOR_CPP_ENABLE_UNSAFE_MATH_OPT_FLAG": _OTHER_CODE,
    "TORCHINDUCTOR_DETERMINISTIC": _OTHER_CODE,
    "TORCHINDUCTOR_EMULATE_DIVISION_ROUNDING": _OTHER_CODE,
    "TORCHINDUCTOR_EMULATE_PRECISION_CASTS": _OTHER_CODE,
    "TORCHINDUCTOR_MAX_AUTOTUNE": _OTHER_CODE,
    "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM": _OTHER_CODE,
    "TORCHINDUCTOR_MAX_AUTOTUNE_POINTWISE": _OTHER_CODE,
    "TORCHINDUCTOR_USE_FAST_MATH": _OTHER_CODE,
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": _OTHER_RESULTS,
    "TORCH_BLAS_PREFER_CUBLASLT": _OTHER_RESULTS,
    "TORCH_COMPILE_DISABLE": "models are not compiled",
    "TRITON_F32_DEFAULT": _OTHER_CODE,
}
"""Variables by which libraries compute or communicate otherwise, and what they change."""

COMPARED = {
    "random numbers that the processor draws": "initial weights are drawn on it, whatever the device is; "
    "without AVX2, and on ARM, `normal_` gives other last bits",
    "instructions of the processor, where it is the device": "a softmax has other last bits with AVX2 and "
    "AVX512, and replicas would drift apart",
    "products of the processor, where it is the device": "of two with AVX512 one may multiply bfloat16 with "
    "instructions that the other does not have",
    "threads of a process, where the processor is the device": "a sum over many values has other last bits",
    "settings of torch: default type, precision of products, deterministic algorithms, attention kernels, "
    "denormal numbers": "a `sitecustomize.py`, a library that is imported or a script that starts the run "
    "through Python can change them",
}
"""What else of a processor must be the same on all machines, and why."""

NOT_COMPARED = {
    "locale, encoding of texts (`LANG`, `LC_ALL`, `PYTHONUTF8`)": "files are read and written as UTF-8, "
    "and names are sorted by their characters",
    "`PYTHONHASHSEED`": "each process has its own by default: nothing depends on the order of a set",
    "threads of a process on other devices": "random numbers are the same with any number of them",
    "instructions of the processor beside other devices": "the random numbers that it draws are compared",
    "clocks, time zones and host names": "nothing is ordered by them",
}
"""What may be different on each machine without a notice, and why."""


def build(section: Any, config: Any) -> dict[str, str]:
    """The variables that are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def settings_of_torch() -> dict[str, Any]:
    """What a process has set that changes how torch computes."""
    backends: Any = torch.backends
    cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
    return {
        "torch.get_default_dtype()": str(torch.get_default_dtype()),
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "torch.backends.cuda.matmul.fp32_precision": _precision(cuda.matmul),
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction": plain(
            cuda.matmul.allow_bf16_reduced_precision_reduction
        ),
        "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction": plain(
            cuda.matmul.allow_fp16_reduced_precision_reduction
        ),
        "torch.backends.cuda.flash_sdp_enabled()": cuda.flash_sdp_enabled(),
        "torch.backends.cuda.math_sdp_enabled()": cuda.math_sdp_enabled(),
        "torch.backends.cuda.mem_efficient_sdp_enabled()": cuda.mem_efficient_sdp_enabled(),
        "torch.backends.cuda.cudnn_sdp_enabled()": cuda.cudnn_sdp_enabled(),
        "torch.backends.cudnn.enabled": cudnn.enabled,
        "torch.backends.cudnn.benchmark": cudnn.benchmark,
        "torch.backends.cudnn.deterministic": cudnn.deterministic,
        "torch.backends.cudnn.conv.fp32_precision": _precision(cudnn.conv),
        "torch.backends.mkldnn.enabled": mkldnn.enabled,
        "torch.backends.mkldnn.matmul.fp32_precision": _precision(mkldnn.matmul),
        "denormal numbers are": "kept" if torch.tensor(1e-310, dtype=torch.float64) * 1.0 else "zero",
    }


def _precision(operation: Any) -> str:
    """Of its products of float32; ``none`` is that of all operations, and that one is exact."""
    general: Any = torch.backends
    own = operation.fp32_precision
    precision = general.fp32_precision if own == "none" else own
    return "ieee" if precision == "none" else str(precision)
