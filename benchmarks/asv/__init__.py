"""What asv runs: times, memory, errors and products, on every array library and device."""
