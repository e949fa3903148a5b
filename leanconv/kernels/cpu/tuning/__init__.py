"""Which tile and which algorithm: facts of the processor, and a model of its cost."""
