"""`torpor migrate`: from TorchServe's archives to model folders, and what could not come along."""
