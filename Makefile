# make demo | test | long | lint | docs | dist | clean. Each target sets up .venv by itself; another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# pip up to 25.2 reads the pins of the build backend from the first name, later ones from the second.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip --disable-pip-version-check

# One process more than there are cores, since some tests wait: for other processes, or for a browser.
WORKERS := import os; print(min(8, 1 + (os.cpu_count() or 1)))

PYTEST = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n "$$($(BIN)/python -c '$(WORKERS)')" --dist worksteal

# Type checking is pinned: do not look for a newer version on the network.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: demo test long lint docs dist clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/disa demo --out demo

test: lint
	@command -v chromium >/dev/null || echo "no browser: tests of the studio in one are skipped (apt-get install chromium)"
	$(PYTEST) -m "not long"

# Trainings, studies, and runs that are killed again and again.
long: $(READY)
	$(PYTEST) -m long

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

dist: $(READY)
	$(BIN)/python .ci/dist.py dist

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "disa needs Python 3.11 or newer, and '$(PYTHON)' says: $$("$(PYTHON)" -V 2>&1)" >&2; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
		exit 1; }
	@echo "setting up $(VENV) from constraints.txt (some minutes the first time)"
	@"$(PYTHON)" -m venv $(VENV)
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[diffusers,dev]'
	@touch $@
	@echo "$(VENV) is ready"

clean:
	rm -rf $(VENV) build dist site demo .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
