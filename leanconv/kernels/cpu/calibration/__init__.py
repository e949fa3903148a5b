"""How fast this core works, for the cost model: measured once a machine, kept in the cache of kernels."""
