"""What kernels take of three GPU generations, without a GPU: `python -m benchmarks.static`."""
