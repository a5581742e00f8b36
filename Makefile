# `make` lists the targets. Each of them brings up what it needs.

PYTHON := .venv/bin/python
# Workers of a test run: twice two cores, as most tests wait more than they work. Each takes a file at a time.
WORKERS ?= 4
PYTEST = -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder --durations=20
.DEFAULT_GOAL := help

.PHONY: help
help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: bootstrap
bootstrap: ## install what is missing of the venv, Java and the broker
	@docker/bootstrap.sh

.PHONY: test-servers
test-servers: ## bootstrap, and fetch the FTP server for the tests
	@docker/bootstrap.sh --tests

.PHONY: demo
demo: bootstrap ## move 200 files between two FTP servers, then stop everything; KEEP=1 leaves it running
	@$(PYTHON) docker/demo.py $(if $(filter-out 0 no false,$(KEEP)),--keep)

.PHONY: down
down: ## stop what `make demo KEEP=1` left running
	@if [ -x $(PYTHON) ]; then $(PYTHON) docker/demo.py --down; else echo "demo: nothing was running"; fi

.PHONY: test
test: test-servers ## run all tests except those of the image and the long ones
	@tests/fetch-zoo.sh debian || true  # those of the zoo that run each time
	$(PYTHON) $(PYTEST) -m "not long and not container" $(ARGS)

.PHONY: coverage
coverage: test-servers ## run the same tests, and measure what they reach, in child processes too: half as long again
	@tests/fetch-zoo.sh debian || true
	@$(PYTHON) -m coverage erase
	$(PYTHON) -m coverage run $(PYTEST) -m "not long and not container" $(ARGS)
	@$(PYTHON) -m coverage combine --quiet
	@$(PYTHON) -m coverage report

.PHONY: unit
unit: WORKERS = 2
unit: bootstrap ## run only the unit tests
	$(PYTHON) $(PYTEST) -m "unit and not long" $(ARGS)

.PHONY: image
image: ## build the image from BASE_IMAGE, or from the base image that docker/engine.sh makes
	docker build -f docker/Dockerfile -t etl-file-sync \
	    --build-arg BASE_IMAGE=$${BASE_IMAGE:-$$(docker/engine.sh)} .

.PHONY: test-container
test-container: bootstrap ## test the image in a real Docker Engine; TEST_LONG=1 runs the long tests too
	$(PYTHON) $(PYTEST) -m "container$(if $(filter-out 0,$(TEST_LONG)),, and not long)" $(ARGS)

.PHONY: zoo-servers
zoo-servers: test-servers ## fetch FTP servers that other people wrote, too
	@tests/fetch-zoo.sh || true  # what could not be had is named, and its tests fail

.PHONY: test-zoo
test-zoo: zoo-servers ## run the contract and 169 jobs on each server of the zoo
	$(PYTHON) -m pytest -m zoo $(ARGS)

.PHONY: servers-table
servers-table: zoo-servers ## write docs/servers.md anew, from the zoo
	ZOO_TABLE=docs/servers.md $(PYTHON) -m pytest tests/zoo $(ARGS)

.PHONY: openapi
openapi: bootstrap ## write docs/openapi.json anew, from the API
	WRITE_OPENAPI=1 $(PYTHON) -m pytest tests/unit/api/test_description.py -k committed

.PHONY: screenshot
screenshot: test-servers ## write docs/images/page.png anew, from the page
	WRITE_SCREENSHOTS=1 $(PYTHON) -m pytest tests/browser -k picture

.PHONY: test-long
test-long: zoo-servers coverage ## run the long tests: more kills, more faults, more files; and those of `make coverage`
	TEST_LONG=1 $(PYTHON) -m pytest -m long $(ARGS)

.PHONY: bench
bench: test-servers ## compare with rclone, lftp, curl and C, in some 15 minutes; ARGS="--help" lists options
	$(PYTHON) bench/run.py $(ARGS)

.PHONY: lint
lint: bootstrap ## run ruff, mypy and shellcheck
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	.venv/bin/shellcheck .ci/run docker/*.sh docker/ftp/*.sh kafka/*.sh kafka/bin/*.sh tests/*.sh bench/*.sh src/etl/transfer/sftp/*.sh

.PHONY: format
format: bootstrap ## format the sources, and fix what ruff can fix
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

.PHONY: lock
lock: bootstrap ## lock all Python requirements and Kafka's jars with hashes, for all supported Python versions
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check uv
	for name in requirements requirements-build requirements-dev requirements-java; do \
	    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	        --custom-compile-command "make lock" --output-file docker/$$name.lock docker/$$name.in || exit 1; done
	kafka/fetch.sh --lock

.PHONY: osv
osv: bootstrap ## ask OSV_ENDPOINT for known vulnerabilities of all that is locked; without one, say what was not asked
	@$(PYTHON) docker/osv.py $(if $(OSV_ENDPOINT),--endpoint $(OSV_ENDPOINT))

.PHONY: clean
clean: down ## remove everything that was built, except the venv
	rm -rf build .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
