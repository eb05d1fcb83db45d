"""One folder an op: its definition, its checks, its backends, and a README.md with its maths and its counts."""
