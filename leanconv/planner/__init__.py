"""Which operator in which layer, found by measurement, and the whole way from a trained network to a leaner one."""
