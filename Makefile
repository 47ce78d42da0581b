# Two commands for a newcomer: `make demo` shows the program at work, `make test` proves it.
# Both set up what they need in .venv.

PYTHON ?= python3
BIN := .venv/bin
DEMO := build/demo
WHEEL := build/wheel
DATA ?=

.PHONY: demo wheel test test-gpu gpu fuzz lint bench results bench-solver bench-step bench-offload bench-estimator trees check-trees train clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

# Profile, estimate, solve and decode with the bundled pair on this machine. Arguments: the folder of
# the programs, and the folder to write into.
define demonstration
	$(1)/sequoia-opt profile --contexts 128,512 --tokens 1,2,3,4,6,8,12,16,24,32 --repeats 5 -o $(2)/profile.yaml
	$(1)/sequoia-opt estimate -o $(2)/acceptance.yaml
	$(1)/sequoia-opt solve --profile $(2)/profile.yaml --acceptance $(2)/acceptance.yaml -o $(2)/tree.json
	$(1)/sequoia-opt decode $(2)/tree.json --compare
endef

demo: .venv/installed
	$(call demonstration,$(BIN),$(DEMO))

# Build the wheel, install it into an empty environment, and run the demonstration from there.
wheel: .venv/installed
	rm -rf $(WHEEL)
	$(BIN)/python -m build --quiet --wheel --outdir $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(WHEEL)/*.whl
	cd $(WHEEL) && test -z "$$(venv/bin/python -c 'import sequoia_opt; print(sequoia_opt.__file__)' | grep -v site-packages)"
	$(call demonstration,cd $(WHEEL) && venv/bin,demo)

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Run the tests that need an NVIDIA GPU; without one they are skipped, and say so.
test-gpu: .venv/installed
	$(BIN)/python -m pytest -m gpu -rs

# Measure a machine with an NVIDIA GPU, in nine minutes: the GPU tests, a 7B, an 8B and an offloaded
# 13B shape, and the bundled pair. OUT gets a log for each part, a table, and an archive of profiles,
# plans and results; unpack it here to commit them.
#     make gpu                               sets up .venv first
#     PYTHON=python3 make gpu OUT=results    uses that Python and its torch as they are
#     make gpu DEVICE=cpu SHAPES=tiny        rehearses it without a GPU
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

# Greedy decoding, compiled, with this machine's committed tree: all methods, and the tree against the
# best chain on more prompts.
bench: .venv/installed
	$(BIN)/sequoia-opt bench --compile --limit 16 --repeats 1 --format md
	$(BIN)/sequoia-opt bench --compile --methods chain,tree --limit 32 --repeats 1 --format md

# Measure what benchmarks/ has: every method at five temperatures, trees by size, verifiers, predictions.
results: .venv/installed
	PATH=$(BIN):$$PATH bash benchmarks/run.sh $(DATA)

# Print the solver's tables: how its time grows, and how often it finds the fastest tree.
bench-solver: .venv/installed
	$(BIN)/python tests/benchmarks/solver.py

# Measure where a step's time goes, for each verifier, and what a step costs by context length beside
# its prediction; with DATA also compare greedy decoding with plain decoding, in float64, on every
# prompt.
bench-step: .venv/installed
	$(BIN)/python tests/benchmarks/step.py
	$(BIN)/python tests/benchmarks/step.py --compile
	$(BIN)/python tests/benchmarks/contexts.py --compile
	$(if $(DATA),$(BIN)/python tests/benchmarks/greedy.py $(DATA))

# Decode with a target of a few GB whose layers are read from disk: rates, memory and steps, beside
# accelerate's.
bench-offload: .venv/installed
	$(BIN)/python tests/benchmarks/offload.py

# Measure what teacher-forced estimation costs beside the models' own forward passes.
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

# Fails where a tree in the repository is not what its profile and acceptance give.
check-trees: .venv/installed
	$(BIN)/sequoia-opt solve-all --check

# Train the bundled pair again (three hours on two cores).
train: .venv/installed
	$(BIN)/python -m sequoia_opt.demo.train --output sequoia_opt/demo --compile

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis
