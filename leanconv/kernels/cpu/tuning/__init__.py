"""CPU facts, and the cost model that chooses register tiles, blocks of rows and algorithms."""
