"""What finite width adds to the limit: variance and bias at order 1/N, and expansions at a width."""
