"""The schedulers: vLLM step by step, SGLang step by step, and the leap. No clock, no randomness."""
