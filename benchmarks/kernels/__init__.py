"""Every op of `synpro_kernels` beside plain PyTorch: right first, then its time, and how near that is to a limit."""
