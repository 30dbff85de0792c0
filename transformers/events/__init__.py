"""CloudEvents 1.0.2 over HTTP (https://github.com/cloudevents/spec/tree/ce@v1.0.2/cloudevents): what an event is, and how it
goes to and from headers and body in the binary, structured and batched modes. No I/O, and nothing of the package `cloudevents`.
"""

from torpor.predictors.serving.request_options import is_event

from .event import DataForm, Event
from .http_binding import Mode, decode, encode, encode_batch, mode_of

__all__ = ["DataForm", "Event", "Mode", "decode", "encode", "encode_batch", "is_event", "mode_of"]
