#!/bin/sh
# Run tests with another version of torch, in an environment of its own that is kept: tools/test_torch.sh VERSION [TEST ...]
#   LOWEST=1       the other libraries are the oldest that pyproject.toml allows
#   PYTHON=        another Python than python3, with an environment of its own
#   ENVIRONMENTS=  where the environments are, the source tree unless given; sources in other places share those there
#   MADE_BY=       puts the outcome into docs/versions.md, as made by this command; pytest's options are then the table's
set -eu
cd "$(dirname "$0")/.."
version=${1:?"usage: tools/test_torch.sh VERSION [TEST ...], such as 2.6.0"}
shift
env=${ENVIRONMENTS:-$PWD}/.venv-torch-$version${LOWEST:+-lowest}
[ -z "${PYTHON:-}" ] || env=$env-py$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# What the exports' tests need asks for torch 2.9, so an older one does without these tests.
extras=test,onnx,openvino
case $version in 2.[0-8] | 2.[0-8].*) extras=test ;; esac
# The interpreter of Triton 3.6, which tests step through kernels with, takes arrays of one number for numbers.
case $version in 2.[0-9] | 2.[0-9].* | 2.1[0-3]*) numpy="numpy<2.4" ;; *) numpy=numpy ;; esac
if [ ! -e "$env/done" ] || ! cat pyproject.toml tools/lowest.txt | cmp -s - "$env/made-from"; then
  rm -rf "$env"
  mkdir -p "$(dirname "$env")"
  "${PYTHON:-python3}" -m venv "$env"
  "$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "torch==$version" \
    "$numpy" ${LOWEST:+--constraint tools/lowest.txt} -e ".[$extras]"
  cat pyproject.toml tools/lowest.txt >"$env/made-from"
  pwd >"$env/source"
  touch "$env/done"
elif [ "$(cat "$env/source")" != "$PWD" ] || [ -n "$(find CMakeLists.txt csrc -newer "$env/done" | head -n 1)" ]; then
  "$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e .
  pwd >"$env/source"
  touch "$env/done"
fi
"$env/bin/python" -c 'import timm, torch; print("torch", torch.__version__, "timm", timm.__version__)'
if [ -n "${MADE_BY:-}" ]; then
  exec "$env/bin/python" tools/versions.py "$MADE_BY" "${@:-tests}"
fi
exec "$env/bin/python" -m pytest -rs "${@:-tests}"
