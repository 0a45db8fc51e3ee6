#!/usr/bin/env bash
# Runs everything that we measure on a GPU; let nothing else run beside it: bash studies/gpu.sh [FOLDER] [NANOGPT]
# What matters most comes first, so that whatever cuts it short leaves the most. Every table, log and run comes into
# FOLDER, a new one (results/gpu by default). NANOGPT is a checkout of nanoGPT, for the race. Both are seen from the
# repository's folder. QUICK=1 tries it all with tiny sizes, and DEVICE=cpu without a GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-results/gpu} nanogpt=${2:-} device=${DEVICE:-cuda}
mkdir "$out" || exit 2 # what is there already stays
tiny=() quick=()
if [ "${QUICK:-}" ]; then
    quick=(--quick --rounds 1)
    tiny=(--size small --n_layer 1 --n_head 2 --n_embd 16 --block_size 32 --batch_size 4 --max_iters 5 --eval_interval 5)
fi
graph=()

note() { # NAME COMMAND...: the command, its output and its time in FOLDER/NAME.txt
    local start=$SECONDS
    { echo "\$ ${*:2}"; "${@:2}"; echo "exit code $?, $((SECONDS - start)) s"; } 2>&1 | tee "$out/$1.txt" | tail -n 4
}
train() { # NAME SEED SCRIPT FLAGS...: a whole command, from its start to its text
    note "$1-$2" python "$3" --device "$device" --size full --seed "$2" "${@:4}" "${graph[@]}" "${tiny[@]}" --out "$out/$1-$2"
}

note machine bash -c 'nvidia-smi --query-gpu=name,driver_version --format=csv,noheader; nproc; python -c "import torch; print(torch.__version__)"'
note tests env TEST_DEVICE="$device" python -m pytest -q -n 8 --dist load tests/test_device.py
grep -q "exit code 0" "$out/tests.txt" || graph=(--no-cuda_graph) # what a test refused is not timed
note launches python -m studies.launches --device "$device" "${quick[@]}"
train gpt 1 gpt.py
train modern_gpt 1 modern_gpt.py
train windowed_gpt 1 windowed_gpt.py
train gatv2 1 pyg_free_gat.py
if [ "$nanogpt" ]; then
    for compile in True False; do
        note "nanogpt-compile-$compile" bash -c 'cd "$0" && (cd data/shakespeare_char && python prepare.py) && python train.py config/train_shakespeare_char.py --compile="$1"' "$nanogpt" "$compile"
    done
fi
for seed in 2 3; do
    train gpt $seed gpt.py
    train modern_gpt $seed modern_gpt.py
    train windowed_gpt $seed windowed_gpt.py
    train gatv2 $seed pyg_free_gat.py
done
for seed in 1 2 3; do
    train long_gat $seed long_gat.py
done
rm -f "$out"/*/*.pt
