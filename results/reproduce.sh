#!/usr/bin/env bash
# The runs that the README quotes: bash results/reproduce.sh ladder layers matched, or some of these.
# A run that is there already, whose sample.txt is what comes last, is left alone. `python results/table.py` then writes
# the README's tables. The ablation and the speed tables have commands of their own, beside them.
set -eo pipefail # no -u: the bash of macOS takes an empty array for an unset one
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run() { # NAME SEED SCRIPT FLAGS...
    local out=results/published/$1 seed=()
    [ "$2" = 1 ] || { out+=-$2; seed=(--seed "$2"); }
    [ -e "$out/sample.txt" ] || python "${@:3}" "${seed[@]}" --out "$out"
}

ladder() {
    for seed in 1 2 3; do
        run bigram $seed bigram.py
        run single_head $seed single_head.py
        run multi_head $seed multi_head.py
        run one_block $seed gpt.py --n_layer 1 --n_head 8 --n_embd 128 --batch_size 32 --block_size 32 --max_iters 900 --eval_interval 300
        run gpt $seed gpt.py
        run modern_gpt $seed modern_gpt.py
    done
}

layers() {
    for layer in dot gatv2 gat mean max; do
        run $layer 1 pyg_free_gat.py --layer $layer
    done
}

matched() { # as many parameters as the dot product has, to 2%
    for seed in 1 2 3; do
        run dot $seed pyg_free_gat.py --layer dot
        run gatv2_matched $seed pyg_free_gat.py --layer gatv2 --n_embd 200
        run gat_matched $seed pyg_free_gat.py --layer gat --n_embd 208
    done
}

for group in "${@:?which: ladder, layers, matched}"; do
    $group
done
