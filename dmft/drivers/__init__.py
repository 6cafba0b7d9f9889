"""What a user calls to solve a problem: the limit, its neurons, a plan of it; and the runs of the engine they share."""
