"""Measuring a GPU or a live engine, and fitting profiles to the measurements."""
