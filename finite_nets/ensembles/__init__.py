"""Ensembles of networks: which members, in what batches, what is recorded of them, and the Datasets they become."""
