#!/usr/bin/env bash
# Measures all that this folder keeps of one machine and one dataset, and draws it:
#     benchmarks/run.sh [prompts.jsonl]
# It takes half an hour. The machine's profile and the dataset's trees are there already
# (`sequoia-opt profile --compile`, `make trees DATA=prompts.jsonl`).
set -euo pipefail

name=demo
data=()
if [ $# -gt 0 ]; then
  name=$(basename "$1" .jsonl)
  data=(--dataset "$(realpath "$1")")
fi
cd "$(dirname "$0")/.."
# HARDWARE names the folder, else the one with the newest trees.
newest=$(dirname "$(ls -t trees/*/*+compiled--"$name"-greedy-T0.json | head -1)")
hardware=${HARDWARE:-$(basename "$newest")}
trees=trees/$hardware
out=benchmarks/$hardware/$name
tree() { ls "$trees"/*+compiled--"$name"-*-T"$1".json; }
bench() { sequoia-opt bench "$@" "${data[@]}" --format md; }

# Predictions, on documents that the estimate has not seen; first, the sooner after the profile.
bench "$(tree 0)" --calibrate --limit 40 --max-new-tokens 96 -o "$out/calibration.json"

# Every method at five temperatures.
for t in 0 0.3 0.6 1 1.2; do
  bench "$(tree $t)" --limit 16 --repeats 1 -o "$out/T$t.json"
done

# The tree of most tokens beside other shapes, by size.
bench "$(tree 0.6)" --sizes 4,8,16,32,64,128 --limit 8 --repeats 1 --max-new-tokens 96 \
  -o "$out/sizes-T0.6.json"

# The four verifiers on one large tree for each temperature.
for t in 0.3 0.6 1 1.2; do
  sequoia-opt solve --size 64 --profile "$(ls profiles/"$hardware"/*+compiled.yaml)" \
    --acceptance "$(ls profiles/acceptance/*--"$name"--*-T$t.yaml)" -o build/64-nodes.json
  bench build/64-nodes.json --methods tree,specinfer,topk,traversal --limit 16 --repeats 1 \
    --max-new-tokens 96 -o "$out/64-nodes/T$t.json"
done

sequoia-opt plot "$out"/*.json -o "$out/figures"
sequoia-opt plot "$out"/64-nodes/*.json -o "$out/64-nodes/figures"
