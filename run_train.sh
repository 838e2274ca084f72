#!/usr/bin/env bash
# Train a model: ./run_train.sh [flags of the run]
#
#   NGPU         processes on this machine; all GPUs, or 1 without one
#   CONFIG_FILE  the TOML file; the Llama 3 debug model
#   LOG_RANK     ranks whose messages are shown, separated by commas; 0
#
# The first use makes a virtual environment in .venv, unless hekaton is already installed for `python3`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

python=python3
if ! python3 -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("hekaton") and u.find_spec("torch")))'; then
    python=$here/.venv/bin/python
    if [ "$here/requirements.txt" -nt "$here/.venv/.ready" ]; then
        echo "setting up $here/.venv" >&2
        # The environment that is there stays that of its Python, whichever is the first one now.
        "$python" -m pip --version >/dev/null 2>&1 || python3 -m venv --clear "$here/.venv"
        (cd "$here" && "$python" -m pip install --quiet -r requirements.txt)
        touch "$here/.venv/.ready"
    fi
fi

if [ -z "${NGPU:-}" ]; then
    NGPU=1
    if command -v nvidia-smi >/dev/null; then
        NGPU=$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')
    fi
fi
export LOG_RANK=${LOG_RANK:-0}
CONFIG_FILE=${CONFIG_FILE:-$here/model_zoo/llama3/train_configs/debug_model.toml}

# What is wrong with the configuration is said here, once, and not by torchrun as the failure of a process.
checked=$("$python" -m hekaton config check "$CONFIG_FILE" "$@" --world_size "$NGPU") || exit $?

# One process plays one rank of NGPU.
if [[ $checked == *'comm.mode = "fake_backend"' ]]; then
    export NGPU
    exec "$python" -m hekaton.train --job.config_file "$CONFIG_FILE" "$@"
fi

exec "$python" -m hekaton.launch --standalone --nproc_per_node="$NGPU" \
    -m hekaton.train --job.config_file "$CONFIG_FILE" "$@"
