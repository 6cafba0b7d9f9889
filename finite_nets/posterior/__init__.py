"""The posterior of networks of finite width, sampled: the other side of `dmft.adaptive_kernel(kind="bayes")`."""
