"""Where things lie: the checkout, fixtures of the tests, and reference data that may lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
FIXTURES = TESTS / "fixtures"
TRUTH = ROOT.parent / "shared" / "truth"
"""Logs of real engines and published figures, too large to ship; tests that read them say so where they are missing."""
