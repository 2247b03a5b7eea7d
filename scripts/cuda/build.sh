#!/usr/bin/env bash
# Builds the programs with CUDA and cuDNN into dist/cuda, on a machine that needs neither a GPU nor a toolkit: `make cuda`.
# What it downloads and builds stays in target/cuda. CUDA_COMPUTE_CAP is the least compute capability that they run on,
# as nvcc writes it (80: Ampere, and whatever is newer); JOBS how many compilers run side by side.
set -euo pipefail
cd "$(dirname "$0")/../.."
scripts=$PWD/scripts/cuda work=$PWD/target/cuda dist=$PWD/dist/cuda

fail() {
    echo "make cuda: $*" >&2
    exit 1
}
[ "$(uname -sm)" = "Linux x86_64" ] || fail "builds on 64-bit x86 Linux only, not on $(uname -sm)"
for tool in cargo cc c++ ar strip python3; do
    command -v "$tool" >/dev/null || fail "$tool is not installed"
done

# The toolkit: wheels of fixed digests, unpacked anew when the list changes.
mkdir -p "$work"
if ! cmp -s "$scripts/requirements.txt" "$work/requirements.txt"; then
    rm -rf "$work/python" "$work/site"
    python3 -m venv "$work/python" || fail "python3 has no venv (Debian: python3-venv)"
    "$work/python/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
        --target "$work/site" --requirement "$scripts/requirements.txt" || fail "the toolkit cannot be downloaded"
    cp "$scripts/requirements.txt" "$work/requirements.txt"
fi

# A folder laid out as build scripts expect a toolkit, with our compiler and our libraries in it.
export CUDA_TOOLKIT=$work/site/nvidia/cu13 CUDA_HOME=$work/toolkit
mkdir -p "$CUDA_HOME/bin" "$CUDA_HOME/lib"
ln -sfn "$CUDA_TOOLKIT/include" "$CUDA_HOME/include"
ln -sfn "$CUDA_TOOLKIT/nvvm" "$CUDA_HOME/nvvm"
ln -sfn "$scripts/nvcc" "$CUDA_HOME/bin/nvcc"
source_of() {
    cargo metadata --format-version 1 --all-features --locked --filter-platform x86_64-unknown-linux-gnu |
        python3 -c 'import json, os, sys
found = [p for p in json.load(sys.stdin)["packages"] if p["name"] == sys.argv[1]]
print(os.path.dirname(found[0]["manifest_path"]))' "$1"
}
cudarc=$(source_of cudarc) kernels=$(source_of candle-kernels)
python3 "$scripts/trampolines.py" "$cudarc" "$kernels" "$CUDA_HOME/lib"

# Kernels that are compiled at run time: what is wrong with them shows here, and not where there is a GPU. A file's first
# line may name another one that it stands behind.
for text in $(find crates -name '*.cu' ! -name prelude.cu | sort); do
    for number in "float x" "u16 of_bf16(x)"; do
        read -r type load <<<"$number"
        {
            cat crates/gpu/src/kernels/prelude.cu
            printf '#define BF16 %d\ntypedef %s NUMBER;\n' "$([ "$type" = u16 ] && echo 1 || echo 0)" "$type"
            printf 'INLINE float load(NUMBER x) { return %s; }\n' "$load"
            printf 'INLINE NUMBER store(float x) { return %s; }\n' "$([ "$type" = u16 ] && echo 'to_bf16(x)' || echo x)"
            sed -n '1s/^\/\/ After \(.*\.cu\)\.$/\1/p' "$text" | xargs -r cat
            cat "$text"
        } >"$work/kernels.cu"
        "$CUDA_TOOLKIT/bin/nvcc" -arch=sm_80 -fmad=false -diag-suppress 177 -Werror all-warnings -ptx \
            -o "$work/kernels.ptx" "$work/kernels.cu" || fail "$text does not compile"
    done
done

export CUDA_PATH=$CUDA_HOME NVCC=$CUDA_HOME/bin/nvcc PATH=$CUDA_HOME/bin:$PATH
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} CUDAFORGE_THREADS=${JOBS:-$(nproc)}
# Functions of the same code are folded into one, a twentieth of the program; at a fixed address it needs no table of
# relocations, another thirtieth.
cargo rustc --release --locked --jobs "${JOBS:-$(nproc)}" --package stages --features cudnn --bin stages -- \
    -C link-arg=-Wl,--icf=all -C relocation-model=static

# What reaches a network is a program of its own.
cargo build --release --locked --jobs "${JOBS:-$(nproc)}" --package fetch

rm -rf "$dist"
mkdir -p "$dist"
for program in stages fetch; do
    strip -o "$dist/$program" "${CARGO_TARGET_DIR:-target}/release/$program"
done
for program in sample finetune fit attack gpu-check; do
    ln -sfn stages "$dist/$program"
done
"$dist/attack" --version >/dev/null || fail "the programs do not start"
du -shc "$dist"/*
