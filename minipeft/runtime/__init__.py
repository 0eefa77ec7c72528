"""Services around the core: console, signals, memory, devices, profiling, processes."""
