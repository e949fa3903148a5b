"""The C runtime and its ABI: launches, layouts, memory."""
