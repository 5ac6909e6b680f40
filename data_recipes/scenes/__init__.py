"""The scenes world: things on grounds, and the words about them."""
