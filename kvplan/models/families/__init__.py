"""Builders of layers, by family: what each architecture's config keys mean."""
