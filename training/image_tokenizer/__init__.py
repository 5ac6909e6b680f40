"""The image tokenizer's loop: data, losses, update, and what its codebooks are used for."""
