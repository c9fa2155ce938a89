"""Model files: GGUF and safetensors in, the packed folder in and out. Input is never trusted."""
