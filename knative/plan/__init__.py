"""`torpor plan`: what a predictor needs on Knative for its traffic, measured and simulated."""
