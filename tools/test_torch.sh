#!/bin/sh
# Run tests with another version of torch, in an environment of its own that is kept: tools/test_torch.sh VERSION [TEST ...]
# With LOWEST=1 the other libraries are the oldest that pyproject.toml allows.
set -eu
cd "$(dirname "$0")/.."
version=${1:?"usage: tools/test_torch.sh VERSION [TEST ...], such as 2.6.0"}
shift
env=.venv-torch-$version${LOWEST:+-lowest}
if [ ! -e "$env/done" ] || ! cmp -s pyproject.toml "$env/pyproject.toml"; then
  rm -rf "$env"
  "${PYTHON:-python3}" -m venv "$env"
  "$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "torch==$version" \
    ${LOWEST:+--constraint tools/lowest.txt} -e ".[test]"
  cp pyproject.toml "$env/pyproject.toml"
  touch "$env/done"
fi
"$env/bin/python" -c 'import timm, torch; print("torch", torch.__version__, "timm", timm.__version__)'
exec "$env/bin/python" -m pytest -rs "${@:-tests}"
