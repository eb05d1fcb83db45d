"""Whether tuning learns: each method on two tasks whose reward anyone can compute, and settings that go wrong."""
