"""What runs on the device: products and their precision, matrices, random numbers, Triton code."""
