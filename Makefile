# Maintenance Agent. `make` alone lists what there is.
#
# Everything happens in .venv, made on demand from the lock files; nothing else is installed. PYTHON names the interpreter
# to make it with (default: the first of python3, python3.14 ... python3.11 that is new enough).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= config/maintenance.yaml
# Each worker starts servers of its own: more than four help nobody, and -n auto would count every core.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n > 4 ? 4 : n)))
PYTEST_ARGS ?=
# How many tasks the benchmarks work on.
SIZE ?= 1000000
TYPED = agent tests $(wildcard dashboards)
# The tests start the agent hundreds of times: without its bytecode each start would compile all of it anew.
unexport PYTHONDONTWRITEBYTECODE
YAML = $(wildcard .pre-commit-config.yaml .yamllint.yaml config dashboards mkdocs.yml)

.PHONY: help demo stack run test faults check lint format bench docs picture sbom lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Replay the incident on a private mongod and watch the agent clear it (ONCE=1: one pass, a report, exit)
	@$(BIN)/maintenance-agent demo $(if $(ONCE),--once)

stack: $(VENV)/.demo ## The incident, the agent, and a real Prometheus and Alertmanager (Debian's) with the shipped alerts
	@$(BIN)/python -m agent.demo.stack

run: $(VENV)/.demo ## Run the agent with CONFIG (default: config/maintenance.yaml)
	@$(BIN)/maintenance-agent --config $(CONFIG) serve

test: $(VENV)/.dev ## Run the tests against real servers (PYTEST_ARGS="tests/unit -k word", WORKERS=1)
	@$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

faults: $(VENV)/.dev ## Run the fault tests in full (hours on two cores); make test runs them at a reduced size
	@FAULTS_SCALE=1 $(BIN)/python -m pytest -s -o faulthandler_timeout=0 tests/faults $(PYTEST_ARGS)

check: lint test ## What CI runs: lint, then test

lint: $(VENV)/.dev ## Check style, format, types, the direction of imports and YAML
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(TYPED)
	@$(BIN)/lint-imports
	@$(BIN)/yamllint --strict $(YAML)

format: $(VENV)/.dev ## Bring the code into its format, and mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Benchmarks are files named bench_*.py, which `make test` does not collect.
bench: $(VENV)/.dev ## Measure each pass beside its peers, write docs/performance.md anew (SIZE=10000000 PYTEST_ARGS="-k growth")
	@SIZE=$(SIZE) $(BIN)/python -m pytest -q -s -o python_files='bench_*.py' -o faulthandler_timeout=0 tests/benchmarks $(PYTEST_ARGS)
	@$(BIN)/python -m tests.benchmarks.chart

# The reference is the second half of its page: what follows the mark is made from the code.
define reference
from pathlib import Path
from agent.jobs import KINDS
from agent.settings import reference
page, mark = Path("docs/configuration.md"), "a test holds the two together. -->\n"
page.write_text(page.read_text().partition(mark)[0] + mark + "\n" + reference(KINDS))
endef

docs: export REFERENCE = $(reference)
docs: $(VENV)/.dev ## Write the configuration reference anew, and build the documentation into build/site
	@$(BIN)/python -c "$$REFERENCE"
	@$(BIN)/python -m mkdocs build --strict --quiet
	@echo 'build/site/index.html'

# The agent, a private mongod and the system's Chromium; a change of the page asks for a new picture.
picture: $(VENV)/.dev
	@$(BIN)/python -m tests.e2e.picture

sbom: $(VENV)/.dev ## Write what the image installs as a CycloneDX bill of materials: build/sbom.cdx.json
	@mkdir -p build
	@$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application --output-reproducible \
	  --output-format JSON --output-file build/sbom.cdx.json requirements.lock
	@echo 'build/sbom.cdx.json'

# All three describe one resolution: the large one is made first, the others may only choose from it.
COMPILE = UV_NO_PROGRESS=1 $(BIN)/uv --quiet --no-config pip compile pyproject.toml --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)

lock: $(VENV)/.dev ## Write the lock files anew from pyproject.toml (UPGRADE=1: with the newest releases)
	@$(COMPILE) --extra demo --group dev --output-file requirements-dev.lock
	@$(COMPILE) --constraints requirements-dev.lock --extra demo --group build --output-file requirements-demo.lock
	@$(COMPILE) --constraints requirements-dev.lock --output-file requirements.lock

clean: ## Remove .venv and everything that tools left behind
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .benchmarks
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.demo: requirements-demo.lock pyproject.toml | $(VENV)/bin/python
	$(call install,$<)

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	$(call install,$<)

# Errors only (-qq). The project itself comes last, editable, with the build tools of the lock file.
define install
@echo 'Installing $(1) into $(VENV): a minute or two the first time ...'
@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r $(1)
@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
@touch $@
endef

$(VENV)/bin/python:
	@for python in $(if $(PYTHON),'$(PYTHON)',python3 python3.14 python3.13 python3.12 python3.11); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo 'The Maintenance Agent needs Python 3.11 or newer$(if $(PYTHON),: $(PYTHON) is none.,; none was found. PYTHON=/path/to/python3 names one.)' >&2; \
	  exit 1; \
	fi; \
	if ! "$$found" -m venv $(VENV); then \
	  rm -rf $(VENV); \
	  echo 'The virtual environment could not be made. On Debian and Ubuntu: apt-get install python3-venv' >&2; \
	  exit 1; \
	fi
