"""Measuring a live engine from outside, through its API alone."""
