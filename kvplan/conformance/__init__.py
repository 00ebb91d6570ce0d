"""The twins against logs of their engines: scenario in, log and hashes out."""
