"""Training steps of this engine beside plain PyTorch and transformers: tokens a second, what they go to, and memory."""
