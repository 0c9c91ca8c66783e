"""OpenMM helpers below everything else: forces of a System, checks, autotuning, digests."""
