"""The primitives that operators are made of, each with a readable reference."""
