"""What OpenMM sees: the integrator, its binding to a Context, restarts, the reporter."""
