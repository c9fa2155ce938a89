"""The STEM inference runtime: packed weights, compiled kernels, no network and no screen."""
