#!/usr/bin/env bash
# Puts libtorch 2.11.0 where this checkout's builds look for it: ./.libtorch
#
#   bash setup.sh                          fetch libtorch once per user, shared by every checkout
#   LIBTORCH=/path/to/libtorch bash setup.sh        use a libtorch 2.11.0 that is already there
#   LIBTORCH_USE_PYTORCH=1 bash setup.sh            use the 2.11.0 that `python3 -c 'import torch'` finds
#   bash setup.sh --tests                  the same, and pyarrow, numpy and tensorboard (70 MB) for the tests
#
# Needs bash, python3 with pip, and room for 1.1 GB in ${XDG_CACHE_HOME:-~/.cache}
# (0.5 GB of it is given back at the end). Running it again does nothing.
set -euo pipefail
version=2.11.0
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/simclr-pipeline
say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 2; }
case "${1:-}" in "" | --tests) ;; *) die "$1: only --tests is known" ;; esac
command -v python3 >/dev/null || die "python3 is not on PATH; it is needed once, to fetch libtorch (Debian: apt-get install python3-pip)"

# The version a libtorch folder says it has, without CUDA's suffix; empty if it says nothing.
version_of() {
    local said=""
    if [ -f "$1/build-version" ]; then said=$(cat "$1/build-version")
    elif [ -f "$1/version.py" ]; then said=$(sed -n "s/^__version__ = '\([^']*\)'.*/\1/p" "$1/version.py"); fi
    echo "${said%%+*}"
}

# Points ./.libtorch at folder $1. The build-version file is what torch-sys reads; Python's package lacks it.
link() {
    rm -rf "$here/.libtorch.new"
    mkdir "$here/.libtorch.new"
    ln -s "$1/lib" "$here/.libtorch.new/lib"
    ln -s "$1/include" "$here/.libtorch.new/include"
    echo "$version" >"$here/.libtorch.new/build-version"
    rm -rf "$here/.libtorch"
    mv "$here/.libtorch.new" "$here/.libtorch"
}

fetch() {
    [ "$(uname -sm)" = "Linux x86_64" ] || die "no libtorch $version is fetched for $(uname -sm); set LIBTORCH to one of that version"
    python3 -m pip --version >/dev/null 2>&1 || die "python3 has no pip (Debian: apt-get install python3-pip)"
    mkdir -p "$cache"
    exec 9>"$cache/setup.lock"
    flock 9
    [ -f "$1/build-version" ] && return
    work=$(mktemp -d "$cache/fetching.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    say "fetching libtorch $version (0.54 GB, once per user)"
    # The CPU library of the wheel wants CUDA's runtime and CUPTI beside it, even where there is no GPU.
    cat >"$work/requirements.txt" <<REQ
torch==$version --hash=sha256:0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cupti==13.0.85 --hash=sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
REQ
    local platforms=()
    for tag in manylinux_2_28 manylinux_2_25 manylinux_2_17 manylinux2014; do platforms+=(--platform "${tag}_x86_64"); done
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes --no-cache-dir \
        --python-version 3.12 --implementation cp "${platforms[@]}" -d "$work" -r "$work/requirements.txt" \
        || die "pip could not fetch torch==$version; see its message above, or set LIBTORCH to a libtorch $version at hand"
    say "unpacking"
    python3 - "$work" "$version" <<'PY'
import glob, os, sys, zipfile
work, version = sys.argv[1:]
keep_lib = {f"torch/lib/{name}" for name in ("libtorch_cpu.so", "libc10.so", "libtorch.so", "libgomp.so.1")}
keep_cuda = {f"nvidia/cu13/lib/{name}" for name in ("libcudart.so.13", "libcupti.so.13")}
for wheel in glob.glob(os.path.join(work, "*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            licence = ".dist-info/licenses/" in name and not name.endswith("/")
            if name.startswith("torch/include/") or name in keep_lib | keep_cuda or name == "torch/version.py" or licence:
                archive.extract(name, os.path.join(work, "unpacked"))
    os.remove(wheel)
with open(os.path.join(work, "unpacked", "torch", "build-version"), "w") as file:
    file.write(version + "\n")
PY
    # Unpacked aside and renamed, so that a folder with this name is always whole.
    rm -rf "${1%/torch}"
    mv "$work/unpacked" "${1%/torch}"
    rm -rf "$work"
    trap - EXIT
}

if [ -n "${LIBTORCH:-}" ]; then
    torch=$(cd "$LIBTORCH" 2>/dev/null && pwd) || die "LIBTORCH=$LIBTORCH is no folder"
elif [ -n "${LIBTORCH_USE_PYTORCH:-}" ]; then
    torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))') || die "LIBTORCH_USE_PYTORCH is set, but python3 cannot import torch"
else
    torch=$cache/libtorch-$version/torch
    [ -f "$torch/build-version" ] || fetch "$torch"
fi
found=$(version_of "$torch")
[ "$found" = "$version" ] || die "$torch holds libtorch ${found:-of unknown version}; tch 0.24 needs exactly $version"
[ -f "$torch/lib/libtorch_cpu.so" ] && [ -d "$torch/include" ] || die "$torch lacks lib/libtorch_cpu.so or include/"
if [ "$(readlink "$here/.libtorch/lib" 2>/dev/null || true)" != "$torch/lib" ]; then link "$torch"; fi
say "libtorch $version: $torch"

# What the tests read the data service and event files with: packages in a folder of their own, named after what is in it.
if [ "${1:-}" = --tests ]; then
    packages=$cache/python-tests-$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    stamp="pyarrow==26.0.1 numpy==2.4.6 tensorboard==2.20.0 protobuf==6.33.2 absl-py==2.3.1 packaging==25.0"
    if [ "$(cat "$packages/stamp" 2>/dev/null || true)" != "$stamp" ]; then
        python3 -m pip --version >/dev/null 2>&1 || die "python3 has no pip (Debian: apt-get install python3-pip)"
        mkdir -p "$cache"
        new=$(mktemp -d "$cache/fetching.XXXXXX")
        trap 'rm -rf "$new"' EXIT
        say "fetching $stamp"
        # shellcheck disable=SC2086
        python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --target "$new" $stamp \
            || die "pip could not fetch $stamp; see its message above"
        echo "$stamp" >"$new/stamp"
        rm -rf "$packages"
        mv "$new" "$packages"
        trap - EXIT
    fi
    # The tests look here.
    rm -rf "$here/.python-tests"
    ln -s "$packages" "$here/.python-tests"
    say "$stamp: $packages"
fi
