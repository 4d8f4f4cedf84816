# Every target does its own set-up, in $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo test test-slow lint bench clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[silo,dev]' --constraint constraints.txt
	@touch $@

demo: $(READY)
	$(BIN)/fedplat demo

# Most tests wait for processes that they start, so that three at a time on two cores are faster than two.
test: $(READY)
	$(BIN)/pytest -m "not slow" --numprocesses 3 --dist loadfile

test-slow: $(READY)
	$(BIN)/pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	for bench in tests/benchmarks/bench_*.py; do $(BIN)/python $$bench --quick || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info
