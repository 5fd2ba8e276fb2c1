"""Triton kernels; each has its definition in plain torch one level up, and computes the same."""
