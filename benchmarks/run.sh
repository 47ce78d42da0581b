#!/usr/bin/env bash
# Measures what this folder has of one machine and one dataset, and draws the figures:
#     benchmarks/run.sh [prompts.jsonl]
# It takes half an hour. It needs the machine's profile (`sequoia-opt profile --compile`) and the
# dataset's trees (`make trees DATA=prompts.jsonl`).
set -euo pipefail

name=demo
data=()
if [ $# -gt 0 ]; then
  name=$(basename "$1" .jsonl)
  data=(--dataset "$(realpath "$1")")
fi
cd "$(dirname "$0")/.."
# The machine's folder, and the bundled pair's files in it.
hardware=$(python -c 'from sequoia_opt.engine.devices import usable_device
from sequoia_opt.engine.hardware import hardware
print(hardware(usable_device(None))["slug"])')
pair=demo-target--demo-draft
profile=$(ls profiles/"$hardware"/"$pair"--*+compiled.yaml)
trees=trees/$hardware
out=benchmarks/$hardware/$name
tree() { ls "$trees"/"$pair"--*+compiled--"$name"-{greedy,sequoia}-T"$1".json 2>/dev/null; }
measure() { sequoia-opt "$@" "${data[@]}" --format md; }

# Predictions, on documents that the estimate has not seen. They come first, soon after the profile.
measure calibrate "$(tree 0)" --limit 80 --max-new-tokens 96 -o "$out/calibration.json"

# Every method at five temperatures.
for t in 0 0.3 0.6 1 1.2; do
  measure bench "$(tree $t)" --limit 16 --repeats 1 -o "$out/T$t.json"
done

# The tree of most tokens per step beside other shapes, by size.
measure bench-sizes "$(tree 0.6)" --sizes 4,8,16,32,64,128 --limit 8 --repeats 1 \
  --max-new-tokens 96 -o "$out/sizes-T0.6.json"

# The four verifiers on one large tree, at each temperature.
for t in 0.3 0.6 1 1.2; do
  sequoia-opt solve --size 64 --profile "$profile" \
    --acceptance "profiles/acceptance/$pair--$name--sequoia-T$t.yaml" -o build/64-nodes.json
  measure bench build/64-nodes.json --methods tree,specinfer,topk,traversal --limit 16 --repeats 1 \
    --max-new-tokens 96 -o "$out/64-nodes/T$t.json"
done

sequoia-opt plot "$out"/*.json -o "$out/figures"
sequoia-opt plot "$out"/64-nodes/*.json -o "$out/64-nodes/figures"
