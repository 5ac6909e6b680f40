"""Images against images: sets, pairs, classes."""
