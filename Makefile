# Two commands do all the set-up on a fresh Debian machine with Python 3.11: `make demo` and `make test`.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help demo test check up venv native proto lint types architecture fast fuzz bench clean

help:            ## what can be made
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: venv       ## build and test a real C project in sandboxes, and see what Corral tells about it
	@PYTHONPATH=examples $(BIN)/python -m demo

test:            ## everything: installs what the tests need, then runs them all
	@.ci/system-packages test
	@$(MAKE) --no-print-directory venv
	@$(MAKE) --no-print-directory lint types architecture
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(PYTEST)

check: venv lint types architecture fast    ## lint, types, architecture and the fast tests, in about a minute

up: venv         ## run Corral here, until Ctrl-C
	@$(BIN)/corral up

venv: $(STAMP)   ## .venv with everything, so that .venv/bin/corral runs

$(STAMP): pyproject.toml constraints.txt $(wildcard native/*/*.[ch] native/build_hook.py)
	@.ci/system-packages build
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

native:          ## compile the native programs only
	@for each in native/*/Makefile; do $(MAKE) -C $${each%/Makefile} || exit; done

proto: venv      ## generate src/corral/wire/{v1,reapi} from proto/
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -Iproto --python_out=src --grpc_python_out=src \
	  --mypy_out=quiet:src --mypy_grpc_out=quiet:src proto/corral/wire/*/*.proto
	@for made in src/corral/wire/reapi/*_pb2_grpc.py; do grep -q '^class' $$made || rm $$made $${made}i; done

lint: venv
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .

types: venv
	@$(BIN)/mypy

architecture: venv
	@$(BIN)/lint-imports --no-cache | tail -n 3

fast: venv
	@$(BIN)/python -m pytest -q -n 2 -m 'not slow' tests/spec tests/property

bench: venv      ## measure against the bare thing and against peers
	@.ci/system-packages bench
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m bench

clean:
	rm -rf .venv build dist src/corral/_native
