"""vLLM V1 stepping in closed form from change to change of the batch."""
