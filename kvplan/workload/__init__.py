"""What arrives: lengths, arrivals, strategies, traces. No clock, no engine."""
