"""A transformer and its predictor as two servers: texts in, MiniLM's vectors out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from measurements import THREADS, Served
from probe import Probe
from servers import Peer, Running, StockTransformer, Torpor, running


@dataclass(frozen=True)
class Chained(Served):
    """`peer` is the predictor; what is asked is the transformer before it, of the same make.

    protocol: between the two, for a peer whose transformer has to be told.
    """

    model: str = "sentences"
    protocol: str = ""

    @contextmanager
    def ready(self) -> Iterator[tuple[Running, Probe, Path]]:
        with running(self.peer, "minilm", "", self.batch_rows, THREADS["minilm"], self.waiting) as predictor:
            alone = Served(self.label, self._before(predictor.port), self.wire, self.model, waiting=self.waiting)
            with alone.ready() as transformer:
                yield transformer

    def _before(self, port: int) -> Peer:
        if isinstance(self.peer, Torpor):
            return replace(self.peer, options=("--model-name", "minilm", "--predictor", f"127.0.0.1:{port}"))
        asked = port + 1 if self.protocol == "grpc-v2" else port
        return StockTransformer(self.peer.name, predictor=f"127.0.0.1:{asked}", protocol=self.protocol)
