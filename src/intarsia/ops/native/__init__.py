"""Kernels for CPUs in C, compiled where they are used."""
