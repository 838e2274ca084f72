#!/usr/bin/env bash
# All tests on a named Python and a named torch, or on the lowest versions that the pyproject.toml files allow,
# in an environment of its own under .venvs, which is kept and made again when a requirement changes.
#
#   ./run_tests.sh --torch 2.14.1 --python 3.12 [--quick] [arguments of pytest]
#   ./run_tests.sh --lowest [--python 3.12] [--quick] [arguments of pytest]
#
#   --torch VERSION    this version of torch; without it the one in requirements.txt
#   --python VERSION   this interpreter, which must be installed; without it the version of `python3`
#   --lowest           the lowest version that is allowed of every direct dependency, torch included
#   --quick            without the tests that are marked slow
#   --prepare          make the environment and print its folder, run nothing
set -euo pipefail
export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1} UV_NATIVE_TLS=${UV_NATIVE_TLS:-1} # as pip does
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'error: %s\n' "$1" >&2; exit 2; }

torch='' python='' lowest='' quick='' prepare=''
while [ $# -gt 0 ]; do
    case $1 in
        --torch) torch=${2:-}; [ -n "$torch" ] || fail "--torch needs a version, such as 2.14.1"; shift ;;
        --python) python=${2:-}; [ -n "$python" ] || fail "--python needs a version, such as 3.12"; shift ;;
        --lowest) lowest=lowest ;;
        --quick) quick=quick ;;
        --prepare) prepare=prepare ;;
        *) break ;;
    esac
    shift
done
[ -z "$lowest" ] || [ -z "$torch" ] || fail "--lowest chooses the version of torch: leave out --torch"
[ -n "$python" ] || python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ -n "$torch" ] || torch=$(sed -n 's/^torch==//p' requirements.txt)

uv=(uv)
if ! command -v uv >/dev/null; then
    uv=(python3 -m uv)
    if ! python3 -m uv --version >/dev/null 2>&1; then
        [ -x .venvs/uv/bin/uv ] || { python3 -m venv .venvs/uv && .venvs/uv/bin/pip install --quiet uv; }
        uv=(.venvs/uv/bin/uv)
    fi
fi

# pyenv's commands answer for a version only when it is chosen.
if chosen=$(pyenv latest "$python" 2>/dev/null); then export PYENV_VERSION=$chosen; fi
interpreter=$("${uv[@]}" python find --system --no-python-downloads "$python") ||
    fail "there is no Python $python here"

environment=$PWD/.venvs/python$python-${lowest:-torch$torch}
mapfile -t folders < <(sed -n 's/^-e //p' requirements.txt)
sources=(requirements.txt requirements-dev.txt tests/versions.sh "${folders[@]/%//pyproject.toml}")
install() { "${uv[@]}" pip install --quiet --python "$environment/bin/python" "$@"; }

is_ready() {
    local source
    for source in "${sources[@]}"; do
        [ ! "$source" -nt "$environment/.ready" ] || return 1
    done
}
if ! is_ready; then
    echo "setting up $environment" >&2
    rm -rf "$environment"
    "${uv[@]}" venv --quiet --python "$interpreter" "$environment"
    editable=("${folders[@]/#/--editable=}")
    if [ -n "$lowest" ]; then
        install --resolution lowest-direct "${editable[@]}"
    else
        install "torch==$torch" "${editable[@]}"
    fi
    # The tools of the tests change nothing of that.
    "${uv[@]}" pip freeze --quiet --exclude-editable --python "$environment/bin/python" >"$environment/versions.txt"
    grep -v '^-r' requirements-dev.txt >"$environment/tools.txt"
    install --constraint "$environment/versions.txt" --requirement "$environment/tools.txt"
    # pip compiles what it installs, uv does not: what warns when it is compiled would warn in a test.
    "$environment/bin/python" -W ignore -m compileall -q "$environment"/lib/python*/site-packages/torchao
    touch "$environment/.ready"
fi
if [ -n "$prepare" ]; then
    echo "$environment"
    exit 0
fi

export PATH="$environment/bin:$PATH"
# uv compiles nothing, so every process would, from the first import of torch on.
unset PYENV_VERSION VIRTUAL_ENV PYTHONDONTWRITEBYTECODE
python - <<'END' >&2
import platform, torch
print(f"== Python {platform.python_version()}, torch {torch.__version__}")
END
python -m pytest -m "not slow" "$@"
if [ -z "$quick" ]; then
    python -m pytest -m slow "$@"
fi
