"""The sampler and all that it needs: NumPy and the standard library, nothing else."""
