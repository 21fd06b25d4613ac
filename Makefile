# Every target sets itself up; make, git and Python 3.11 or newer with venv are enough.
# Another Python: make PYTHON=/path/to/python3.13 test-fast

PYTHON ?= python3
TIER ?= closet
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -rs -o junit_family=xunit1
JUNIT := .cache/junit
PLAYBOOKS := $(wildcard *.yml playbooks/*.yml)
# one stamp for each Python, so that another PYTHON makes another .venv
READY := .venv/.ready$(subst /,-,$(PYTHON))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo demo-down test test-fast test-unit test-package test-nodes test-vm test-vm-core test-gpu lint docs

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(READY) ## bring up a closet of three containers, or TIER=under_desk, and run GPU jobs in it
	@$(BIN)/labrack demo up --tier $(TIER)

demo-down: $(READY) ## take the demo away
	@$(BIN)/labrack demo down

test: test-fast test-package test-nodes test-vm-core ## everything; an hour and a quarter on two cores

test-fast: lint test-unit ## without containers; about five minutes on two cores

test-unit: $(READY)
	$(PYTEST) -n 2 tests/unit --junitxml=$(JUNIT)/unit.xml

test-package: $(READY) ## build, install and run wheel and tarball
	$(PYTEST) tests/package -v --junitxml=$(JUNIT)/package.xml

test-nodes: $(READY) ## on nodes in containers; LABRACK_NODE_SYSTEM=debian12 picks their system
	$(PYTEST) -n 2 --dist loadscope tests/nodes -v --durations=25 --junitxml=$(JUNIT)/nodes.xml

test-vm: $(READY) ## on nodes that are virtual machines, with kernels, disks and power switches of their own
	$(PYTEST) tests/vm -v --junitxml=$(JUNIT)/vm.xml

test-vm-core: $(READY) ## of these, one case of each promise; the part that test runs
	$(PYTEST) tests/vm -m core -v --junitxml=$(JUNIT)/vm-core.xml

test-gpu: $(READY) ## on a machine with NVIDIA GPUs: facts and health check against them; no part of test
	$(PYTEST) tests/gpu -v --junitxml=$(JUNIT)/gpu.xml

lint: $(READY) ## check code, YAML, roles and playbooks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/yamllint --strict .
	$(BIN)/ansible-config validate --type all
	@set -e; for inventory in $(wildcard inventories/*); do \
		echo "$(BIN)/ansible-playbook --syntax-check -i $$inventory"; \
		$(BIN)/ansible-playbook --syntax-check -i $$inventory -e node=node1 $(PLAYBOOKS) >/dev/null; \
	done
	PATH="$(CURDIR)/$(BIN):$$PATH" ansible-lint

docs: $(READY) ## write the roles' defaults and READMEs from their argument specs, and a head's requirements from uv.lock
	$(BIN)/python scripts/generate_docs.py
	UV_PYTHON_DOWNLOADS=never $(lastword $(sort $(wildcard .cache/uv-*/bin/uv))) export --quiet --frozen --no-dev \
		--no-emit-project --no-header --no-annotate -o roles/gitops/files/requirements.txt

$(READY): pyproject.toml uv.lock scripts/setup.sh
	@sh scripts/setup.sh $(PYTHON)
	@touch $@
