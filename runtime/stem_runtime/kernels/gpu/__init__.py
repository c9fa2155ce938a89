"""GPU kernels: Triton functions over the packed weights, each with a launcher for raw tensors.

Importing a module of this package imports torch, and but for `matrix` triton. Where
$TRITON_INTERPRET is 1 at that time, the same functions run on CPU tensors in Triton's interpreter.
"""
