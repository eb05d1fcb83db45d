"""Time, memory and accuracy of linear_logprob and its rivals: `python -m benchmarks.linear_logprob`."""
