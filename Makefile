# Two commands do all the set-up: `make demo` and `make test` (plain venv + pip, the default PyPI builds).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST := .venv-oldest

# On 2 processes; a browser beside them: a process of their own.
define run_tests
	OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n 2 --dist worksteal --durations 25 --ignore tests/report --ignore tests/examples
	OMP_NUM_THREADS=1 $(1)/bin/python -m pytest tests/report tests/examples
endef

.PHONY: demo test test-fast test-oldest lint format bench docs clean

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "leanconv needs Python >= 3.11, this is %s: make PYTHON=python3.x" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade --quiet pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## train a small U-Net and its SPLConv twin on synthetic wafers, compare, export, report
	$(BIN)/python -m examples.demo

# Everything, some 20 minutes on 2 quiet cores: what CI runs, and what must pass before a commit is handed over.
test: $(READY)  ## the whole test suite on 2 processes
	$(call run_tests,$(VENV))

# For the minutes between two edits: at most 4.5 on 2 cores. It leaves out what is marked `slow`: tests that take more
# than about 5 s of CPU, compile or export whole networks, compile many kernels, start a browser, or train in another
# process. Its last lines list those files with their number of tests. After a change to one of these rooms, run its
# files too.
test-fast: $(READY)  ## the tests that are not slow; prints what it leaves out
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# Constraints come from pyproject.toml itself, so the build must not fetch tools of its own.
$(OLDEST)/.ready: pyproject.toml .ci/oldest.py
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) .ci/oldest.py > $(OLDEST)/floors.txt
	$(OLDEST)/bin/python -m pip install --upgrade --quiet pip
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/floors.txt setuptools
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/floors.txt --no-build-isolation --editable '.[dev]'
	touch $(OLDEST)/.ready

test-oldest: $(OLDEST)/.ready  ## the same with the oldest versions of everything that pyproject.toml allows
	$(call run_tests,$(OLDEST))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy leanconv

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# About 45 minutes on two cores that do nothing else. Every command writes after each row or table and, begun again at
# the same commit, goes on behind what it has: it may be stopped at any time. What the results say then: make docs.
bench: $(READY)  ## the measured tables under benchmarks/results, most important first
	$(BIN)/python -m benchmarks.fused_engine --set issue untuned --resume --seconds 10
	$(BIN)/python -m benchmarks.cpu_kernels --resume
	LEANCONV_MAX_CPU_ISA=avx2 $(BIN)/python -m benchmarks.cpu_kernels --resume
	$(BIN)/python -m benchmarks.cpu_tiles
	$(BIN)/python -m benchmarks.choices --minutes 12
	$(BIN)/python -m benchmarks.unet_engines --convs conv splconv
	$(BIN)/python -m benchmarks.operators --quick --resume --out benchmarks/results/operators_cpu.json

docs: $(READY)  ## the generated pages and figures under docs
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
