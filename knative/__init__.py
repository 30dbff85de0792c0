"""InferenceService, Knative and Eventing YAML: checked, rendered, run on one machine, sized by measurement, rolled out."""
