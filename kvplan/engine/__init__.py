"""The engine twin: vLLM V1's scheduler, KV cache manager and block pool. No clock, no SimPy, no randomness."""
