"""What was measured on one GPU and engine, with provenance and error, and step times made from it."""
