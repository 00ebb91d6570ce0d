"""What a plan is made of: budget, overheads, demand, the answer, what would fit, how it reads."""
