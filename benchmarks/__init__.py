"""The evaluation protocols as scripts: `python -m benchmarks NAME`. RESULTS.md has the figures."""
