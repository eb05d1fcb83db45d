"""Influence estimators held to real optimizer steps: `python -m benchmarks.influence_truth`."""
