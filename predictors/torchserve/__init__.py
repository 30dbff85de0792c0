"""TorchServe's archives: what they hold (`archive.py`), how they are served (`served.py`), where handlers run (`worker/`)."""
