"""How fast a recipe's generator samples on this device at its own size, and what it takes of the memory."""
