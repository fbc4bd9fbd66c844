"""Training over many devices. Imports nothing by itself, so that the planner can read formulas without torch."""
