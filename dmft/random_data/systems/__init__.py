"""The theories of the models of random data, one a file (`dmft.random_data.theory`)."""
