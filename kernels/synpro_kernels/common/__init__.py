"""What the ops share: precision, block sizes, Triton launches, and what is there to compute with. Knows no op."""
