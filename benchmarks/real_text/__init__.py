"""Every arm of SynPro's comparison on real text, by a recipe's own arms and seeds: docs/real-text.md."""
