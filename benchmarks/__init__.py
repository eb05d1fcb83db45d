"""Programs that measure: `python -m benchmarks.NAME` in the root of a checkout. README.md beside this says which."""
