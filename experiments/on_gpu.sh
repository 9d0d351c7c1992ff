#!/usr/bin/env bash
# Everything that needs a CUDA device, in the order of what it tells: the kernel's correctness, its
# speed beside its peers and the floor, the models, the paper's efficiency tables, length, the
# catalogue, and bfloat16 beside float32 over five seeds. Tables and pictures go to results/benchmarks,
# rows to runs/gpu. Some 25 minutes on an H200; each part stands alone, and a failing one is told.
#
#   experiments/on_gpu.sh [folder with beauty.txt, games_2014.txt and ml-1m.txt]
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-data}
out=results/benchmarks
failed=()

part() {
    echo "== $*"
    "$@" || failed+=("$*")
}

part python -m pytest -q -m gpu
part python -m experiments.benchmark_scan --device cuda --rows 2048 --lengths 50 100 200 \
    --kinds float32 bfloat16 --out $out
part python -m experiments.benchmark_models --device cuda --name models_cuda_beauty --peers --out $out \
    dataset=beauty dataset.path="$folder/beauty.txt"
part python -m experiments.benchmark_models --device cuda --name models_cuda_ml_1m --out $out \
    --models sigma sasrec mamba4rec linrec experiment=sigma_ml_1m dataset.path="$folder/ml-1m.txt"
part python -m experiments.benchmark_tables --device cuda --out $out --data \
    beauty="$folder/beauty.txt" games="$folder/games_2014.txt" ml_1m="$folder/ml-1m.txt"
part python -m experiments.benchmark_length --device cuda --out $out
part python -m experiments.benchmark_catalogue --device cuda --out $out
part python train.py -m model=sigma dataset=beauty dataset.path="$folder/beauty.txt" logger=csv \
    seed=2020,2021,2022,2023,2024 trainer.precision=32-true,bf16-mixed hydra.sweep.dir=runs/gpu

if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
