.DEFAULT_GOAL := help
.PHONY: monitoring help install services check lint types test matrix docs demo bench ci

export PATH := $(CURDIR)/.services/bin:$(PATH)

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install:  ## Make .venv with everything a contributor needs
	python3 -m venv .venv && .venv/bin/pip install --upgrade pip && .venv/bin/pip install -e '.[test]' --group dev

services:  ## redis-server, prometheus and promtool in .services/bin (Debian, Ubuntu)
	.ci/services .services

check: lint types test docs  ## All that should be green before a commit

lint:  ## Style, format and the import contract
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/lint-imports

types:  ## mypy and pyright, both strict
	.venv/bin/mypy && .venv/bin/pyright

test:  ## The suite on this Python
	.venv/bin/pytest

matrix:  ## The suite on every supported Python
	.venv/bin/nox -s tests --error-on-missing-interpreters

monitoring:  ## Rules, their tests, dashboard and pages, anew from the declarations
	.venv/bin/python -m reliakit metrics rules > monitoring/rules.yml
	.venv/bin/python -m reliakit metrics rules-test > monitoring/rules_test.yml
	.venv/bin/python -m reliakit metrics dashboard > monitoring/dashboard.json
	.venv/bin/python -m reliakit metrics catalogue > docs/reference/catalogue.md
	.venv/bin/python -m reliakit metrics runbooks > docs/runbooks.md

docs:  ## Build the site into site/
	.venv/bin/zensical build --strict --clean

demo:  ## Three services on a real PostgreSQL, with faults
	.venv/bin/python -m examples.demo

bench:  ## Every benchmark beside its peers
	for script in benchmarks/*.py; do .venv/bin/python $$script || exit 1; done

ci:  ## What CI runs, from a bare machine
	bash .ci/run
