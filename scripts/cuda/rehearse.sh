#!/usr/bin/env bash
# Runs a program of the GPU build on a machine without a GPU: rehearse.sh dist/cuda/gpu-check --only-checks
#
# The crate `rehearsal` stands for the driver, cuBLAS, cuRAND and cuDNN, and computes on the CPU; NVRTC is NVIDIA's own.
# REHEARSAL_MEMORY is the device's memory in bytes; REHEARSAL_TRACE=1 names every call. LIBRARIES, if set, is a folder with
# the stand-in's links and NVRTC, and nothing is built or downloaded.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scripts=$root/scripts/cuda work=$root/target/cuda

fail() {
    echo "rehearse: $*" >&2
    exit 1
}
[ $# -gt 0 ] || fail "what shall be run? rehearse.sh COMMAND..."

if [ -z "${LIBRARIES:-}" ]; then
    LIBRARIES=$work/rehearsal
    mkdir -p "$LIBRARIES"
    (cd "$root" && cargo build --quiet --release --locked --jobs "${JOBS:-$(nproc)}" --package rehearsal)
    built=${CARGO_TARGET_DIR:-$root/target}/release/librehearsal.so
    for name in libcuda.so.1 libcublas.so.13 libcublasLt.so.13 libcurand.so.10 libcudnn.so.9; do
        ln -sfn "$built" "$LIBRARIES/$name"
    done
    if ! cmp -s "$scripts/rehearsal-requirements.txt" "$work/rehearsal-requirements.txt"; then
        rm -rf "$work/nvrtc"
        [ -x "$work/python/bin/pip" ] || python3 -m venv "$work/python" || fail "python3 has no venv (Debian: python3-venv)"
        "$work/python/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
            --target "$work/nvrtc" --requirement "$scripts/rehearsal-requirements.txt" || fail "NVRTC cannot be downloaded"
        cp "$scripts/rehearsal-requirements.txt" "$work/rehearsal-requirements.txt"
    fi
    for name in libnvrtc.so.13 libnvrtc-builtins.so.13.0; do
        ln -sfn "$work/nvrtc/nvidia/cu13/lib/$name" "$LIBRARIES/$name"
    done
fi
exec env LD_LIBRARY_PATH="$LIBRARIES${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$@"
