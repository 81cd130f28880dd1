"""What this package's computations take, against references and the machine's ceiling: `python -m benchmarks`."""
