"""Bits of weights in int8. A processor without VNNI adds two products in 16 bits, where weights of 8 bits overflow."""

# In the order in which a file that may run on any processor is tried.
WEIGHT_BITS = (7, 8)
# What a file says of its weights.
SAID = {7: "weights of 7 bits", 8: "weights of 8 bits (for processors with VNNI)"}
