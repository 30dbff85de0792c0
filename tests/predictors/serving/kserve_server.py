"""A stock kserve.ModelServer with torpor predictors: `kserve_server.py HTTP_PORT GRPC_PORT FOLDER...`."""

import sys
from pathlib import Path

from kserve import ModelServer
from torpor.predictors.kserve_model import KServeModel

http_port, grpc_port, *folders = sys.argv[1:]
models = [KServeModel(Path(folder).name, folder) for folder in folders]
for model in models:
    model.load()
ModelServer(http_port=int(http_port), grpc_port=int(grpc_port)).start(models)
