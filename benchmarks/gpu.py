"""Batches through the device thread's executor on a GPU, beside a raw loop over a CUDA graph. No server, no HTTP.

`gpu.py [--seconds N]`; it ends with a message and 1 where there is no GPU. The raw loop copies a pinned batch in, replays
the graph, copies the result out and waits: what one batch at a time can do without any of torpor. Rows of torpor's batches
are requests of one row each, which it gathers; two batches are in flight, as on a server with full batches waiting.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

BATCHES = (1, 8, 32, 128)
MODELS = {"mlp 784-512-10": (784, 512, 10), "mlp 8 x 4096": (4096,) * 9}


def rate(batches: Iterator[int], seconds: float) -> float:
    """Rows a second; each step of the iterator is a batch that has ended, with its rows."""
    for _ in range(20):
        next(batches)
    rows, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        rows += next(batches)
    return rows / took


def raw(net: Any, rows: Any) -> Iterator[int]:
    """The loop over a graph."""
    import torch

    pinned, given = rows.pin_memory(), rows.cuda()
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        net(given)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            result = net(given)
        answer = torch.empty(result.shape, pin_memory=True)
        while True:
            given.copy_(pinned, non_blocking=True)
            graph.replay()
            answer.copy_(result, non_blocking=True)
            stream.synchronize()
            yield len(rows)


def torpor(net: Any, rows: Any, graphs: bool) -> Iterator[int]:
    """The executor with two batches in flight; every answer of the first batches is compared with the network's own."""
    import numpy as np
    from torpor.predictors.runtime.executor import Executor
    from torpor.predictors.runtime.tuning import Tuning
    from torpor.predictors.runtime.user_class import inspect_class

    class Served:
        inputs = {"x": f"float32[rows, {rows.shape[1]}]"}

        def load(self) -> None:
            self.net = net

        def predict(self, x: Any) -> Any:
            return self.net(x)

    executor = Executor(inspect_class(Served), device="cuda", tuning=Tuning(cuda_graphs=graphs))
    executor.load()
    expected = net(rows.cuda()).detach().cpu().numpy()
    parts = [executor.signature.bind({"x": row[None]}) for row in rows.numpy()]
    running, count = [executor.begin(parts)], 0
    while True:
        running.append(executor.begin(parts))
        results = executor.run(parts, running.pop(0))
        if count < 100:
            np.testing.assert_allclose(np.concatenate([r["output"] for r in results]), expected, rtol=1e-3, atol=1e-3)
        count += 1
        yield len(parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement (default 3)")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured", file=sys.stderr)
        return 1
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; rows a second\n")
    print(f"{'model':<16}{'rows':>6}{'raw graph':>12}{'torpor':>12}{'graphs':>12}{'graphs/raw':>12}")
    for name, sizes in MODELS.items():
        torch.manual_seed(0)
        layers: list[Any] = []
        for wide, narrow in pairwise(sizes):
            layers += [torch.nn.Linear(wide, narrow), torch.nn.ReLU()]
        net = torch.nn.Sequential(*layers[:-1]).cuda().eval()
        for count in BATCHES:
            rows = torch.rand(count, sizes[0])
            lines: tuple[Callable[[], Iterator[int]], ...] = (
                lambda rows=rows, net=net: raw(net, rows),
                lambda rows=rows, net=net: torpor(net, rows, graphs=False),
                lambda rows=rows, net=net: torpor(net, rows, graphs=True),
            )
            rates = [rate(line(), options.seconds) for line in lines]
            print(f"{name:<16}{count:>6}" + "".join(f"{r:>12.0f}" for r in rates) + f"{rates[2] / rates[0]:>12.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
