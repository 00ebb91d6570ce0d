"""Closed-form KV arithmetic: bytes, blocks and concurrency. Pure, broadcasting; start reading here."""
