#!/usr/bin/env bash
# Collect what hekaton and its plugins need on a machine that has torch and reaches no package index.
#
#   benchmarks/pack_wheels.sh FOLDER [PYTHON_VERSION] [NAME==VERSION ...]
#
# Wheels for Linux x86-64 and PYTHON_VERSION (3.12): hekaton's distributions, their dependencies without torch
# and what comes with it and without pyarrow (45 MB), and any more that are named. There:
#
#   python3 -m pip install --no-index --no-deps --target site FOLDER/*.whl
#   PYTHONPATH=site python3 benchmarks/gpu.py --out report
set -euo pipefail
folder=${1:?the folder to fill}
version=${2:-3.12}
shift $(($# < 2 ? $# : 2))
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rm -f "$folder"/*.whl

platforms=()
for glibc in 39 35 34 31 28 27 24 17 12 5; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)

first_party=()
for project in core plugins/* model_zoo/*; do
    if [ -f "$project/pyproject.toml" ]; then first_party+=("./$project"); fi
done
python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder" "${first_party[@]}"
fetch=(python3 -m pip download --quiet --only-binary=:all: --implementation cp --python-version "$version"
    "${platforms[@]}" --dest "$folder")
"${fetch[@]}" pluggy pydantic pytest-timeout rich tomli tomli-w typing-extensions xxhash
"${fetch[@]}" --no-deps filelock huggingface-hub safetensors tensorboard tokenizers torchao "$@"
du -sh "$folder"
