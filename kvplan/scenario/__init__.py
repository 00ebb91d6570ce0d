"""One YAML file: model, GPU, engine, workload, strategy, targets, prices, and the space around it."""
