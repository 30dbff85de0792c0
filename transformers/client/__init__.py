"""The client to a predictor: `PredictorClient`, what it sends and gets, and how it tries again."""

from torpor.predictors.batching.policy import BatchingSettings
from torpor.predictors.protocol.inference import InferRequest, InferResponse, Terms

from .backoff import Backoff
from .predictor_client import PROTOCOLS, PredictorClient

__all__ = ["PROTOCOLS", "Backoff", "BatchingSettings", "InferRequest", "InferResponse", "PredictorClient", "Terms"]
