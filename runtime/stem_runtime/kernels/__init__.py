"""Compute kernels. This package is the single place where a variant is chosen."""
