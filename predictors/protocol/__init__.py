"""KServe's v1 and Open Inference (v2) protocols to and from numpy arrays; no I/O, no torch, no kserve."""
