"""How vLLM lays KV out at start-up, question by question; `kvplan.memory.layout` puts the answers together."""
