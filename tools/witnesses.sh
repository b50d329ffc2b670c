#!/usr/bin/env bash
# Install real client packages of mamba-ssm for tests/integrations/mamba_ssm/test_witnesses.py, and OpenMMLab's libraries for
# tests/integrations/openmmlab, beside the environment and not into it: tools/witnesses.sh [FOLDER]. FOLDER is
# build/witnesses unless given; PYTHON= names another than .venv's.
#   FOLDER/clients    what imports mamba-ssm, which is not there: its stand-ins serve it
#   FOLDER/openmmlab  mmsegmentation and mmdet, with the mmcv that has no compiled operators
#   FOLDER/mamba-ssm  mamba-ssm and causal-conv1d themselves without their CUDA kernels: the compiled stand-ins serve them
# Only what the environment lacks comes along. What is there already with these pins is left as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build/witnesses}
python=${PYTHON:-.venv/bin/python}

einops=einops==0.8.1
clients=(mambavision==1.2.0 "$einops")
# mamba-ssm imports transformers for its generation; the last two are what that imports.
mamba_ssm=(mamba-ssm==2.3.1 causal-conv1d==1.7.0 "$einops" transformers==5.24.0 regex==2026.11.19 tokenizers==0.23.1)
# The newest mmcv that both accept; then what they import without being asked for anything. (mmengine: pkg_resources.)
openmmlab=(
  mmengine==0.10.7 mmsegmentation==1.2.2 mmdet==3.3.0 mmcv-lite==2.1.0
  addict==2.4.0 ftfy==6.3.1 opencv-python-headless==5.0.0.93 platformdirs==4.14.8 prettytable==3.18.0
  regex==2026.11.19 setuptools==80.9.0 shapely==2.2.0 six==1.17.0 termcolor==3.3.0 terminaltables==3.1.10
  wcwidth==0.9.4 yapf==0.43.0
)
build=(setuptools==80.9.0 wheel==0.45.1 packaging==25.0)

stamp=$("$python" -c 'import sys; print(sys.version)'; printf '%s\n' "${clients[@]}" - "${openmmlab[@]}" - "${mamba_ssm[@]}")
if [[ -f $folder/pins && $(<"$folder/pins") == "$stamp" ]]; then
  exit 0
fi
echo "Installing client packages of mamba-ssm, and OpenMMLab's, into $folder ..."
new=$folder.new
rm -rf "$new"
trap 'rm -rf "$new"' EXIT

install() { # FOLDER PACKAGE ...
  local to=$1
  shift
  "$python" -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --target "$new/$to" "$@" </dev/null || {
    echo "tools/witnesses.sh: pip could not install $* (above is why); the tests of $folder are skipped without them" >&2
    exit 1
  }
}

install clients "${clients[@]}"
install openmmlab "${openmmlab[@]}"
# Built here from their sources, which import torch: the environment's, so without isolation from it.
install build "${build[@]}"
export PYTHONPATH=$PWD/$new/build
[[ $new == /* ]] && PYTHONPATH=$new/build
export MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE
install mamba-ssm --no-build-isolation "${mamba_ssm[@]}"
rm -rf "$new/build"
printf '%s\n' "$stamp" >"$new/pins"
rm -rf "$folder"
mkdir -p "$(dirname "$folder")"
mv "$new" "$folder"
