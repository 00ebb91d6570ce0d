"""What touches the card: probes of memory, kernels, whole steps and batches, and their order. Needs torch."""
