#!/bin/sh
# Build the native kernels into the working tree (src/vmamba/_native/, ignored by git), for development.
# Arguments go to cmake, e.g. -DVMAMBA_NATIVE_REQUIRED=ON.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$root/build"
cmake -S "$root" -B "$root/build/native" -DCMAKE_BUILD_TYPE=Release -DVMAMBA_INSTALL_DIR=_native "$@" >"$root/build/native.log" 2>&1 || {
  cat "$root/build/native.log" >&2
  exit 1
}
cmake --build "$root/build/native" --parallel 2
cmake --install "$root/build/native" --prefix "$root/src/vmamba"
