"""Run the evaluation protocols: `python -m benchmarks NAME`; RESULTS.md has the results."""
