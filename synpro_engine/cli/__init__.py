"""The `synpro` command line."""
