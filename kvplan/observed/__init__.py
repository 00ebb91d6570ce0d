"""What real engines printed and real runs took, beside the plan and the simulation of the same."""
