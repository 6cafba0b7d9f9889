"""Training of a batch of networks: forward, backward and steps of any program, and the fused path of perceptrons."""
