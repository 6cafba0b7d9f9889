"""Simulations of models of random data at several scales: all sizes, of modes, features, samples and batches, times m.

    data         what members draw: samples, batches, and the gradients and losses that they give
    network      what the members of a model are while they train, and what all models share
    learned      matrices that learn, as their start and what was added to them
    features, projected, deep_linear     the models, one a file
    ensemble     from a problem to the Dataset of its members

A member is a function of (root seed, scale, seed index) alone: of parameters 0 features, 1 samples, 2 their noise, then
the batches of steps; deep networks have their weights from `data.WEIGHTS` on.
"""
