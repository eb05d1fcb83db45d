"""What each means against a shortage of text is worth when real text is repeated: docs/data-bound.md."""
