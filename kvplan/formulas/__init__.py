"""Closed-form arithmetic: KV bytes and blocks, lengths that vary, quality, prices. Pure; knows no room above."""
