#!/bin/sh
# Installs what Pairquet needs to build: a C toolchain with cmake and nasm (libjpeg-turbo is built from its crate),
# FFmpeg's development files, libclang (bindings are generated), and for the tests of many processes OpenMPI. With `tests`
# also Chromium, which opens the report; without it those tests say that they are skipped. Does nothing where everything is
# there.
set -eu

missing() {
    for tool in cc cmake nasm pkg-config clang mpicc mpirun; do
        command -v "$tool" >/dev/null 2>&1 || echo "$tool"
    done
    command -v pkg-config >/dev/null 2>&1 || return 0
    for lib in libavcodec libavformat libavutil libswscale; do
        pkg-config --exists "$lib" || echo "$lib"
    done
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: Rust is missing: install the current stable toolchain with rustup (https://rustup.rs), then run this again" >&2
    exit 1
fi

browser() {
    if [ "${1:-}" != tests ] || command -v chromium >/dev/null 2>&1; then return 0; fi
    echo "setup: installing chromium for the tests of the report"
    if command -v apt-get >/dev/null 2>&1; then
        as_root apt-get update -qq &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
    elif command -v dnf >/dev/null 2>&1; then
        as_root dnf install -y -q chromium
    else
        false
    fi || echo "setup: chromium is not to be had here: the tests of the report in a browser will be skipped"
}
browser "$@"

lacking=$(missing)
[ -n "$lacking" ] || exit 0
echo "setup: missing: $(echo "$lacking" | tr '\n' ' ')"

if command -v apt-get >/dev/null 2>&1; then
    echo "setup: installing them with apt-get (build tools, FFmpeg development files, libclang, OpenMPI)"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        build-essential cmake nasm pkg-config clang libclang-dev \
        libavcodec-dev libavformat-dev libavutil-dev libswscale-dev libopenmpi-dev openmpi-bin >/dev/null
elif command -v dnf >/dev/null 2>&1; then
    echo "setup: installing them with dnf (build tools, FFmpeg development files, clang, OpenMPI)"
    as_root dnf install -y -q gcc gcc-c++ make cmake nasm pkgconf-pkg-config clang clang-devel \
        ffmpeg-free-devel libavcodec-free-devel libavformat-free-devel libavutil-free-devel libswscale-free-devel \
        openmpi openmpi-devel
    PATH=$PATH:/usr/lib64/openmpi/bin
elif command -v brew >/dev/null 2>&1; then
    echo "setup: installing them with brew (cmake, nasm, pkg-config, llvm, ffmpeg, open-mpi)"
    brew install --quiet cmake nasm pkg-config llvm ffmpeg open-mpi
else
    echo "setup: no apt-get, dnf or brew here: install a C compiler, cmake, nasm, pkg-config, clang with libclang," \
        "and the development files of libavcodec, libavformat, libavutil and libswscale (FFmpeg 5 or later), and OpenMPI with mpicc" >&2
    exit 1
fi

lacking=$(missing)
if [ -n "$lacking" ]; then
    echo "setup: still missing after the installation: $(echo "$lacking" | tr '\n' ' ')" >&2
    exit 1
fi
