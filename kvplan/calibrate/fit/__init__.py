"""Measured rows in, coefficients with held-out errors out. Knows numpy and the formulas of `timing`."""
