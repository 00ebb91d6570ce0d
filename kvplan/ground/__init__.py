"""What every room stands on: errors, units, the config base, bundled files, the GPU and price tables."""
