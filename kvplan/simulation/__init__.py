"""Replicas, routers, accounts and strategies on one clock; `run` is the only file that knows SimPy."""
