"""What sweeps and recommendations are made of: points, rows, bounds, bisection, fleets."""
