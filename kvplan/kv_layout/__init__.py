"""How vLLM lays KV out at start-up, question by question; `kvplan.layout` puts the answers together."""
