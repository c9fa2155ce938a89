"""CPU kernels: numba functions over LLVM vectors, compiled once per machine."""
