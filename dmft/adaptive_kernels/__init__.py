"""Adaptive kernels: what training ends with at infinite width, feature learning included, is a kernel predictor.

    bayes    posterior of the weights at a temperature, to which Langevin dynamics with weight decay relax
    flow     gradient flow with weight decay, t -> infinity

Both end with kernels Phi^l that know the targets, and with a predictor that is regression on the last of them, or on
the NTK.  `drive` has the one public function, `result` the Datasets that it returns (kind "adaptive_kernel").

Source: Lauditi, Bordelon & Pehlevan 2025 (arXiv:2502.07998).
"""
