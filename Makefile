# Targets by intention; `make` lists them. Everything they need they bring up themselves.

PYTHON := .venv/bin/python
# Workers of a test run: one more than two cores, as most tests wait more than they work. Each takes a file at a time.
WORKERS ?= 3
PYTEST = -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder --durations=20
.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: bootstrap
bootstrap: ## install what is missing (the venv, Java, the broker); the second time nothing
	@docker/bootstrap.sh

.PHONY: test-servers
test-servers: ## the same, and the FTP server of the integration tests
	@docker/bootstrap.sh --tests

.PHONY: demo
demo: bootstrap ## move 200 files between two FTP servers and stop everything; KEEP=1 leaves it running
	@$(PYTHON) docker/demo.py $(if $(filter-out 0 no false,$(KEEP)),--keep)

.PHONY: down
down: ## end what `make demo KEEP=1` left running
	@if [ -x $(PYTHON) ]; then $(PYTHON) docker/demo.py --down; else echo "demo: nothing was running"; fi

.PHONY: test
test: test-servers ## all tests but those of the image and the long ones, with coverage of child processes
	@$(PYTHON) -m coverage erase
	$(PYTHON) -m coverage run $(PYTEST) -m "not long and not container" $(ARGS)
	@$(PYTHON) -m coverage combine --quiet
	@$(PYTHON) -m coverage report

.PHONY: unit
unit: WORKERS = 2
unit: bootstrap ## only the tests of pure logic
	$(PYTHON) $(PYTEST) -m unit $(ARGS)

.PHONY: image
image: ## build the image on the base image of this machine (docker/engine.sh), or on BASE_IMAGE
	docker build -f docker/Dockerfile -t etl-file-sync \
	    --build-arg BASE_IMAGE=$${BASE_IMAGE:-$$(docker/engine.sh)} .

.PHONY: test-container
test-container: bootstrap ## the image in a real Docker Engine; TEST_LONG=1 runs the long ones, too
	$(PYTHON) $(PYTEST) -m "container$(if $(filter-out 0,$(TEST_LONG)),, and not long)" $(ARGS)

.PHONY: test-long
test-long: test-servers ## more kills, more faults, more files: the same tests with larger parameters
	TEST_LONG=1 $(PYTHON) -m pytest -m long $(ARGS)

.PHONY: bench
bench: test-servers ## all comparisons with rclone, lftp, curl and C, one table, some 15 minutes; ARGS="--help"
	$(PYTHON) bench/run.py $(ARGS)

.PHONY: lint
lint: bootstrap ## ruff, mypy, shellcheck
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	.venv/bin/shellcheck .ci/run docker/*.sh docker/ftp/*.sh kafka/bin/*.sh tests/*.sh bench/*.sh

.PHONY: format
format: bootstrap ## rewrite the sources in the one format
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

.PHONY: lock
lock: bootstrap ## lock the image's requirements with hashes, for all supported Pythons at once
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	    --custom-compile-command "make lock" --output-file docker/requirements.lock docker/requirements.in

.PHONY: clean
clean: down ## remove what was built; the venv stays
	rm -rf build .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
