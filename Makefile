# Two commands need nothing but Python >= 3.10 and make: `make demo` and `make test`.
# Each makes its own environment in .venv first.

PYTHON ?= python3
PYTEST_FLAGS ?= -n auto --dist worksteal
STRESS_FLAGS ?=
BENCH_FLAGS ?=
TORTURE_FLAGS ?=
TASK_TORTURE_FLAGS ?=
VALUES_TORTURE_FLAGS ?=

# Of `make conformance`; see conformance/run.py
SQLALCHEMY ?= 2.1 2.0
KINDS ?= rlock rw
PARTS ?= test/orm test/ext test/base
# Of `make conformance-connections`: engine, dialect, reflection, SQL
DATABASES ?= sqlite
GREENLET ?= without with
DBURI ?= sqlite
JOBS ?= auto
FLAGS ?=

run := .venv/bin/python
sources := sharedsession tests benchmarks conformance examples setup.py

.PHONY: demo test lint format torture mutants bench conformance \
    conformance-connections conformance-faults conformance-others clean

demo: .venv/.ready
	$(run) -m sharedsession stress $(STRESS_FLAGS)

test: .venv/.ready
	$(run) -m pytest $(PYTEST_FLAGS)

lint: .venv/.ready
	$(run) -m black --quiet --check --diff $(sources)
	$(run) -m isort --quiet --check --diff $(sources)
	$(run) -m flake8 $(sources)
	$(run) -m mypy

format: .venv/.ready
	$(run) -m isort --quiet $(sources)
	$(run) -m black --quiet $(sources)

torture: .venv/.ready
	$(run) -m tests.proofs.torture.torture $(TORTURE_FLAGS)
	$(run) -m tests.proofs.torture.aio_torture $(TASK_TORTURE_FLAGS)
	$(run) -m tests.proofs.torture.values_torture $(VALUES_TORTURE_FLAGS)

mutants: .venv/.ready
	$(run) -m tests.proofs.mutants.mutants

bench: .venv/.ready
	$(run) -m benchmarks $(BENCH_FLAGS)

conformance:
	$(PYTHON) -m conformance.run --sqlalchemy $(SQLALCHEMY) --kinds $(KINDS) \
	    --parts $(PARTS) --greenlet $(GREENLET) --db $(DBURI) --jobs $(JOBS) $(FLAGS)

conformance-connections:
	$(PYTHON) -m conformance.run --connections --sqlalchemy $(SQLALCHEMY) \
	    --kinds $(KINDS) --greenlet $(GREENLET) --db $(DATABASES) --jobs $(JOBS) \
	    $(FLAGS)

# Faults that the tests of the engine must find
conformance-faults:
	$(PYTHON) -m conformance.run --connections --sqlalchemy 2.1 --kinds rlock \
	    --greenlet without --jobs $(JOBS) --fault soft-closed \
	    --parts test/engine/test_reflection.py
	$(PYTHON) -m conformance.run --connections --sqlalchemy 2.1 --kinds rlock \
	    --greenlet without --jobs $(JOBS) --fault facts \
	    --parts test/sql/test_resultset.py

conformance-others:
	$(PYTHON) -m conformance.others --sqlalchemy $(SQLALCHEMY) --kinds $(KINDS) \
	    --jobs $(JOBS) $(FLAGS)

.venv/.ready: setup.cfg setup.py pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one with PYTHON=")'
	$(PYTHON) -m venv .venv
	$(run) -m pip install --quiet --upgrade pip
	$(run) -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache build *.egg-info
