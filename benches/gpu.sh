#!/usr/bin/env bash
# Tests and measurements on an NVIDIA GPU, of what `cargo xtask gpu` has built; needs a driver and Python with PyTorch, no Rust.
#
# usage: gpu.sh [tests|sanitizer|bench ...]     all of them without arguments; a line of JSON per measurement goes to gpu_step.jsonl beside this script, or to $OUT
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
out=${OUT:-.}
failed=()

step() {
    echo "== $*" >&2
    "$@" || failed+=("$*")
}

tests() {
    MONOSEM_TEST_GPU=1 step ./training --test-threads 1
}

# A few steps of every family: each check makes them some ten to a hundred times as slow.
sanitizer() {
    for tool in memcheck racecheck initcheck synccheck; do
        MONOSEM_TEST_GPU=1 step compute-sanitizer --tool "$tool" --error-exitcode 1 ./training --test-threads 1 the_bits full_and_empty
    done
}

measure() {
    python3 gpu_step_peers.py --binary ./gpu_step | tee "$out/gpu_step.jsonl"
}

bench() {
    step python3 gpu_step_peers.py --check
    step measure
}

if ! command -v nvidia-smi >/dev/null; then
    echo "gpu.sh: not run: there is no NVIDIA driver here" >&2
    exit 1
fi
nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.limit --format=csv >&2
for part in "${@:-tests sanitizer bench}"; do
    for name in $part; do
        case $name in
            tests | sanitizer | bench) "$name" ;;
            *) echo "gpu.sh: no part is called $name" >&2; exit 2 ;;
        esac
    done
done
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
