"""Bundles for edge nodes: one file or folder that a node without a network can check, install and take back.

    inputs ──bundle──► OCI image layout ──sign──► + TUF metadata ──medium──► verify ──install──► generations/8
     (models, images,   (`bundle.py`,             (`repository.py`)          (`trust.py`)        current ─► 8
      manifests)         `pieces.py`)                                                            (`node.py`)

- `layout.py` reads a bundle from a folder or from one file (`archive.py`); nothing that it reads is trusted.
- `contents.py` is what a bundle holds: files, each a row of parts by digest. Weights have a part for each tensor.
- `trust.py` decides what is accepted, by python-tuf and with a time that never goes back; `roles.py` is who signs what.
- `node.py` installs and takes back: `staging.py` grows what becomes one of the `generations.py`; `state.py` is what was
  accepted. `k3s.py` puts it where K3s looks. Every change goes through `disk.py`, which tests replace by one that fails.
- `agent.py` keeps a node at what its fleet's repository names: `origin.py` and `download.py` fetch it, `service.py` brings
  it up and asks it, `reports.py` tells. `rollout.py` says which nodes take a version, `course.py` how far it goes.

Whatever is refused is a `Refused` with its reason in a word.
"""
