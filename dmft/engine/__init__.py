"""The causal engine: the training step of a network over populations of neurons and the matrices between them.

Read in this order:

    normals      sources of raw normal variables
    population   neurons as particles, or as exact linear forms; averages over them
    basis        orthonormal directions of a population, grown by the vectors that are met (causal pivoted Cholesky)
    matrix       a Gaussian weight matrix: revealed as it is used (the limit), or explicit (an ordinary network)
    bank         several of them over positions, that meet the same directions
    tape         the interpreter of programs: forward, backward; tangent: its derivative along a direction
    form         what a step needs of a problem
    network      forward, backward and update of a network, written once over matrices; ntk, shown: what is seen of it
    flow         gradient flow: schemes of first and second order
    loop         initial states, and one compiled loop over the steps of training
    variation    derivatives of all of it in the measures of neurons; curvature: the Hessian of the loss

It knows no Datasets and no files.  Vectors are rows: an array (sample, component) holds one population-vector a sample.
"""

import os

# JAX would take three quarters of a GPU at its first use, and PyTorch works beside it; read when JAX looks for devices
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
