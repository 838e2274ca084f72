#!/usr/bin/env bash
# Everything that has to hold: lint, types, import contracts, docs, tests. Installs the test tools if missing.
#
#   ./run_tests.sh            all of it
#   ./run_tests.sh --quick    without the tests marked slow (packages in clean environments, most layouts)
#   ./run_tests.sh --torch 2.14.1 --python 3.12 [--quick]
#   ./run_tests.sh --lowest [--quick]
#                             the tests alone, on other versions: tests/versions.sh says more
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

case ${1:-} in --torch | --python | --lowest | --prepare) exec tests/versions.sh "$@" ;; esac

if ! python3 -c 'import hekaton, hekaton_deepseek_v3, hekaton_eval, hekaton_float8, hekaton_flux, hekaton_gpt_oss, hekaton_hf, hekaton_llama3, hekaton_llama4, hekaton_lora, hekaton_mlflow, hekaton_mx, hekaton_parallel, hekaton_qwen3, hekaton_tensorboard, hekaton_torchao, hekaton_wandb
import build, diffusers, hypothesis, importlinter, jsonschema, lm_eval, matplotlib, mkdocs, mypy, peft, pytest, pytest_timeout, ruff, torchao, transformers, xdist' 2>/dev/null; then
    if [ requirements.txt -nt .venv/.ready-dev ] || [ requirements-dev.txt -nt .venv/.ready-dev ]; then
        echo "setting up .venv" >&2
        .venv/bin/python -m pip --version >/dev/null 2>&1 || python3 -m venv --clear .venv
        # pip finds torch where its settings say, such as the build for CPUs; uv installs the rest in a fifth of the
        # time, unless only pip's settings know where from.
        .venv/bin/python -m pip install --quiet uv "$(grep '^torch==' requirements.txt)"
        UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1} UV_NATIVE_TLS=${UV_NATIVE_TLS:-1} \
            .venv/bin/uv pip install --quiet --python .venv/bin/python -r requirements-dev.txt ||
            .venv/bin/python -m pip install --quiet -r requirements-dev.txt
        # pip compiles what it installs, uv does not: what warns when it is compiled would warn in a test.
        .venv/bin/python -W ignore -m compileall -q .venv/lib/python*/site-packages/torchao
        touch .venv/.ready .venv/.ready-dev
        new=new
    fi
    export PATH="$PWD/.venv/bin:$PATH"
fi
python=$(command -v python3)

step() { printf '\n== %s\n' "$*"; "$@"; }
step "$python" -m ruff check .
step "$python" -m ruff check --preview --select PLW1514 core/src plugins/*/src model_zoo/*/src  # texts are UTF-8, whatever the locale is
step "$python" -m ruff format --check .
types=$(mktemp)
"$python" -m mypy >"$types" 2>&1 & # beside the next steps, which leave a core idle
mypy=$!
# Two workers of pytest would each compile what the tests import, at the same time.
[ -z "${new:-}" ] || "$python" -m pytest --collect-only -qq >/dev/null 2>&1 &
step lint-imports
step "$python" docs/generate.py --check
step "$python" -m mkdocs build --strict --site-dir "$(mktemp -d)"
printf '\n== %s -m mypy\n' "$python"
wait "$mypy" && passed=0 || passed=$?
cat "$types"
[ "$passed" -eq 0 ] || exit "$passed"
# One worker keeps a core busy; the processes of a distributed test share what the other leaves. With two threads a
# process, small products of one worker would wait for a core that the other worker has.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
tests=("$python" -m pytest -n 2 --no-loadscope-reorder --durations=30 --durations-min=5)
if [ "${1:-}" = "--quick" ]; then
    step "${tests[@]}" -m "not slow"
else
    step "${tests[@]}"
fi
