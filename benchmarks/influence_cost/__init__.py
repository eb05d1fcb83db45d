"""What influence costs, as ratios within one run: `python -m benchmarks.influence_cost`."""
