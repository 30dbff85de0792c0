"""Writes every seeded weight file that the archives need into the folder of its one argument.

Runs in the peer's environment, which has onnx.
"""

import json
import sys
from pathlib import Path

import onnx
import torch
from bag import Bag
from linear import Linear
from onnx import TensorProto, helper
from segmenter import Segmenter

WORDS = ["i", "am", "cannot", "good", "bad", "i am", "am good", "am bad", "the", "film", "the film", "film i"]


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3 * 16, 6)

    def forward(self, images):
        return self.layer(torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1))


def main() -> None:
    folder = Path(sys.argv[1])
    torch.manual_seed(0)
    linear, classifier = Linear().eval(), Classifier().eval()
    torch.save(linear.state_dict(), folder / "linear.pt")
    torch.save(Segmenter().state_dict(), folder / "segmenter.pt")
    torch.save({}, folder / "detector.pt")
    torch.save(Bag().state_dict(), folder / "bag.pt")
    torch.save({word: number for number, word in enumerate(WORDS)}, folder / "source_vocab.pt")
    torch.jit.script(linear).save(folder / "scripted.pt")
    torch.jit.script(classifier).save(folder / "classifier.pt")
    onnx.save(graph(linear), folder / "linear.onnx")
    (folder / "index_to_name.json").write_text(json.dumps({str(i): ["n0", f"class {i}"] for i in range(6)}))


def graph(linear: Linear) -> onnx.ModelProto:
    """The same layer as an ONNX graph, by hand: an exporter would be one more dependency."""
    layer = linear.layer
    named = {"weight": layer.weight, "bias": layer.bias}
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, values.shape, values.detach().flatten().tolist())
        for name, values in named.items()
    ]
    nodes = [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name, size in [("x", 3), ("y", 2)]
    ]
    built = helper.make_graph(nodes, "linear", ends[:1], ends[1:], constants)
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    main()
