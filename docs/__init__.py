"""Pages; `site` makes the rest of them."""
