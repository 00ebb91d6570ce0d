"""`watch`: a serving vLLM beside its plan, from pages of its /metrics and logs of usage; reads only."""
