"""Altair charts of plans, runs, searches and strategies."""
