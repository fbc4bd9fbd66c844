PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TEST_INSTALLED := $(VENV)/.test-installed
LAUNCH := $(BIN)/accelerate launch --quiet --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
export OMP_NUM_THREADS ?= $(shell nproc)
# How long a thread of OpenMP spins before it sleeps, about 0.1 ms: by default as long as a whole region of ours takes, on
# a core that another job could use.
export GOMP_SPINCOUNT ?= 10000

.PHONY: r1-zero countdown program r1 distill pretrain test notebooks install clean

r1-zero: $(INSTALLED)  ## the main job: a base model learns to reason by RL alone
	$(LAUNCH) recipes/r1_zero.py $(ARGS)

countdown: $(INSTALLED)  ## the same on real Countdown
	$(LAUNCH) recipes/r1_zero.py --config recipes/configs/countdown.yaml $(ARGS)

program: $(INSTALLED)  ## the same on small programs, run in the sandbox
	$(LAUNCH) recipes/r1_zero.py --config recipes/configs/program.yaml $(ARGS)

r1: $(INSTALLED)  ## R1's four stages
	$(LAUNCH) recipes/r1.py $(ARGS)

distill: $(INSTALLED)  ## a small dense model learns from what `make r1` left
	$(LAUNCH) recipes/distill.py $(ARGS)

# Two processes of one thread; "multi_gpu" is accelerate's name for several, on CPUs too.
pretrain: $(INSTALLED)  ## make the embedded base again
	OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true $(BIN)/accelerate launch --quiet --multi_gpu --num_processes 2 \
		--num_machines 1 --mixed_precision no --dynamo_backend no recipes/pretrain.py $(ARGS)

# One hash seed: the workers must agree on every test's name, and names show sets.
test: $(TEST_INSTALLED)  ## the tests
	OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(BIN)/python -m pytest -n auto --dist loadscope $(ARGS)

notebooks: $(TEST_INSTALLED)  ## execute the notebooks again, in place
	$(BIN)/python notebooks/execute.py $(ARGS)

install: $(INSTALLED)

# torch is pinned and installed first, so that no other package pulls a build of its own choosing.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(TEST_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test,gguf]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
