"""What `kvplan.simulation.run` drives on its clock: replicas, routers, accounts, strategies' drivers. None knows SimPy."""
