"""Sizes of items that flags state: what each tower's processor makes of them (`rows.py` is the table)."""
