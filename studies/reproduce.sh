#!/usr/bin/env bash
# Does anew the runs that the README quotes: bash studies/reproduce.sh ladder layers matched windows modern texts tokens
# long graphs longer_graphs full_graphs students full record, or some of these. They come into results/reproduced/,
# beside those in results/published/. Their losses come close to those: to the last bit only with the same processor,
# versions and threads (see config.json). A run that is done, whose sample.txt is what comes last, is left alone; one
# that was stopped goes on. The ablation, the gains and the speed tables have their own commands.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run() { # NAME SEED SCRIPT FLAGS...
    local out=results/reproduced/$1 flags=("${@:3}")
    [ "$2" = 1 ] || { out+=-$2; flags+=(--seed "$2"); }
    case "$cuda ${flags[*]}" in
        *--size* | *bigram.py* | *single_head.py* | *multi_head.py* | *\ block.py* | *transformer.py*) ;;
        True*) flags+=(--size small) ;; # on CUDA the default is full
    esac
    flags+=(--out "$out")
    [ ! -e "$out/checkpoint.pt" ] || flags+=(--resume)
    [ -e "$out/sample.txt" ] || python "${flags[@]}" || {
        local code=$?
        [ $code != 130 ] || rm -f "$out/sample.txt" # Ctrl-C: not at its end
        exit $code
    }
}

modern_256=(--batch_size 16 --block_size 256 --learning_rate 1e-2)

ladder() {
    for seed in 1 2 3; do
        run bigram $seed bigram.py
        run single_head $seed single_head.py
        run multi_head $seed multi_head.py
        run block $seed block.py
        run transformer $seed transformer.py
        run one_block $seed gpt.py --n_layer 1 --n_head 8 --n_embd 128 --batch_size 32 --block_size 32 --max_iters 900 --eval_interval 300
        run gpt $seed gpt.py
        run modern_gpt $seed modern_gpt.py
    done
}

layers() {
    for seed in 1 2 3; do
        run gatv2 $seed pyg_free_gat.py --layer gatv2
    done
    for layer in dot gat mean; do
        run $layer 1 pyg_free_gat.py --layer $layer
    done
    run max 1 -m studies.maximum
}

texts() { # graph attention over 4,096 characters at a time, and over 256
    for seed in 1 2 3; do
        run long_gat $seed long_gat.py
        run long_gat_256 $seed long_gat.py --block_size 256 --batch_size 16
        run gat_256 $seed pyg_free_gat.py --layer gat --block_size 256 --batch_size 16
    done
}

matched() { # as many parameters as the dot product has, to 2%
    for seed in 1 2 3; do
        run dot $seed pyg_free_gat.py --layer dot
        run gatv2_matched $seed pyg_free_gat.py --layer gatv2 --n_embd 200
        run gat_matched $seed pyg_free_gat.py --layer gat --n_embd 208
    done
}

windows() { # --attention plain is gpt.py
    for seed in 1 2 3; do
        run soft_window $seed windowed_gpt.py --attention soft_window
        for attention in hard_window head_gate location_mlp location_gate; do
            run $attention $seed -m studies.gates --attention $attention
        done
    done
}

modern() { # longer windows, fewer of them, more steps
    for seed in 1 2 3; do
        run modern_256 $seed modern_gpt.py "${modern_256[@]}" --max_iters 900 --eval_interval 150
    done
}

tokens() { # as many steps as take the time of those with characters, of 150 and of 100
    for seed in 1 2 3; do
        for steps in 0:150:100 512:150:100 1024:140:90 4096:92:67; do
            IFS=: read -r size gpt modern <<<"$steps"
            run tokens_gpt_$size $seed gpt.py --vocab_size $size --max_iters $gpt --eval_interval $gpt
            run tokens_modern_gpt_$size $seed modern_gpt.py "${modern_256[@]}" --vocab_size $size --max_iters $modern --eval_interval $modern
        done
    done
}

long() { # below 1.4697, which nanoGPT has from three minutes of an A100
    local size=(--n_layer 6 --n_embd 256) rest=(--learning_rate 6e-3 --weight_decay 0.3 --max_iters 1700 --eval_interval 340)
    for seed in 1 2 3; do
        run long_512 $seed modern_gpt.py "${size[@]}" --batch_size 4 --block_size 512 "${rest[@]/0.3/0.5}"
    done
    local flags=("${size[@]}" --batch_size 8 --block_size 256 "${rest[@]}")
    run long 1 modern_gpt.py "${flags[@]}"
    run long 2 modern_gpt.py "${flags[@]}"
    run long_windows 1 -m studies.modern_windows "${flags[@]}"
}

graphs() { # windows, and graphs with about as many edges as a window of 16
    local sums=(window:8+global:8 window:8+random:8 window:8+stride:8 window:8+global:4+random:4)
    for seed in 1 2 3; do
        for graph in window:2 window:4 window:8 window:16 window:32 window:64 "${sums[@]}"; do
            for layer in dot gatv2; do
                run graph_${layer}_${graph//[:+]/_} $seed pyg_free_gat.py --layer $layer --graph $graph
            done
        done
    done
}

longer_graphs() { # three times the steps
    run dot_1800 1 pyg_free_gat.py --layer dot --max_iters 1800 --eval_interval 300
    run graph_dot_window_4_1800 1 pyg_free_gat.py --layer dot --graph window:4 --max_iters 1800 --eval_interval 300
}

full_graphs() { # some of them at full size, where gpt.py has the dot product and the causal graph
    for seed in 1 2 3; do
        for K in 4 8 16; do
            run full_graph_dot_window_$K $seed pyg_free_gat.py --layer dot --size full --graph window:$K
        done
    done
    for K in 32 64; do
        run full_graph_dot_window_$K 1 pyg_free_gat.py --layer dot --size full --graph window:$K
    done
    for K in 4 16 64; do
        run full_graph_gatv2_window_$K 1 pyg_free_gat.py --layer gatv2 --size full --graph window:$K
    done
}

students() { # of the published weights of two rungs
    for seed in 1 2 3; do
        run student $seed -m studies.student --teachers results/published/modern_gpt,results/published/soft_window
    done
}

full() { # four as on CUDA, then the sizes of github.com/LucTuc/gpt-pyg-attention and a tenth of its characters
    for seed in 1 2 3; do
        run full_gpt $seed gpt.py --size full
        run full_modern_gpt $seed modern_gpt.py --size full
        run full_pyg_free_gat $seed pyg_free_gat.py --size full
        run full_windowed_gpt $seed windowed_gpt.py --size full
    done
    run full_long_gat 1 long_gat.py --size full
    run full_dot_128 1 pyg_free_gat.py --layer dot --size full --block_size 128 --dropout 0
    local flags=(--size full --batch_size 64 --block_size 128 --learning_rate 8e-3 --max_iters 500 --eval_interval 50)
    for layer in gat gatv2 dot; do
        run full_$layer 1 pyg_free_gat.py --layer $layer "${flags[@]}" --weight_decay 0.1 --dropout 0.2
        run full_${layer}_no_dropout 1 pyg_free_gat.py --layer $layer "${flags[@]}" --weight_decay 0.1 --dropout 0
    done
    run full_dot_decay 1 pyg_free_gat.py --layer dot "${flags[@]}" --weight_decay 0.3 --dropout 0
    run full_dot_decay_dropout 1 pyg_free_gat.py --layer dot "${flags[@]}" --weight_decay 0.3 --dropout 0.1
    run full_modern 1 modern_gpt.py "${flags[@]}" --weight_decay 0.3 --dropout 0.2
}

record() { # three models, those that learn from all three, and both for twice as long
    local sizes=(--size full --batch_size 8 --block_size 512) one=results/reproduced/full_modern_512
    local teachers=(--teachers $one,$one-2,$one-3) longer=(--max_iters 4000 --eval_interval 500)
    for seed in 1 2 3; do
        run full_modern_512 $seed modern_gpt.py "${sizes[@]}"
    done
    for seed in 1 2 3; do
        run full_student $seed -m studies.student "${sizes[@]}" "${teachers[@]}"
    done
    for seed in 1 2 3; do
        run full_modern_512_long $seed modern_gpt.py "${sizes[@]}" "${longer[@]}"
        run full_student_long $seed -m studies.student "${sizes[@]}" "${teachers[@]}" "${longer[@]}"
    done
    run full_student_teachers 1 -m studies.student "${sizes[@]}" "${teachers[@]}" "${longer[@]}" --share 1
}

for group in "${@:-}"; do
    [[ " ladder layers matched windows modern texts tokens long graphs longer_graphs full_graphs students full record " == *" ${group:-none} "* && $group != *" "* ]] || { echo "which: ladder, layers, matched, windows, modern, texts, tokens, long, graphs, longer_graphs, full_graphs, students, full, record" >&2; exit 2; }
done
cuda=$(python -c "import torch; print(torch.cuda.is_available())")
for group; do
    $group
done
