"""A world of facts in which it is known what synthesis can add: docs/evidence.md."""
