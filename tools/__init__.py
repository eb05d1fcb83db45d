"""What the project is kept in order with: the reading of its own source, and the making of its documentation."""
