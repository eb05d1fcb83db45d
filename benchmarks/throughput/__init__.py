"""How fast a recipe's models train and sample on this device, and what they take of its memory."""
