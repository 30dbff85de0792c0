"""`torpor up`: InferenceServices, Knative Services, Broker and Triggers on one machine, one process each, to zero and back."""
