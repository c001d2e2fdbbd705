#!/usr/bin/env bash
# Builds libsimclr_nccl.so, which several ranks on GPUs need beside libtorch's CUDA library:
#
#   bash trainer/torch/cpp/nccl/build.sh [FOLDER]     target/nccl if no folder is given
#
# Put the folder on LD_LIBRARY_PATH. Needs a C++ compiler, python3 with pip, and a checkout that setup.sh has been run in;
# a GPU, a driver or CUDA it needs not: headers come from the wheels that torch 2.11.0 was built with.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../../.." && pwd)
out=${1:-$root/target/nccl}
[ -d "$root/.libtorch/include" ] || { echo "build: no .libtorch in $root; run setup.sh first" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "build: fetching headers (0.2 GB, not kept)" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --no-cache-dir \
    --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 \
    --platform manylinux_2_18_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$work" \
    nvidia-nccl-cu13==2.28.9 nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
python3 - "$work" <<'PY'
import glob, sys, zipfile
for wheel in glob.glob(sys.argv[1] + "/*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(sys.argv[1], [name for name in archive.namelist() if "/include/" in name])
PY
includes=()
for folder in "$work"/nvidia/*/include "$work"/nvidia/*/include/cccl; do includes+=(-isystem "$folder"); done
torch=$root/.libtorch
mkdir -p "$out"
echo "build: compiling" >&2
${CXX:-c++} -std=c++17 -O2 -fPIC -shared -Wall -Wextra -DUSE_C10D_NCCL -DUSE_DISTRIBUTED "${includes[@]}" \
    -isystem "$here/stubs" -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" -I"$here/.." \
    "$here/nccl.cpp" -o "$out/libsimclr_nccl.so"
echo "$out/libsimclr_nccl.so"
