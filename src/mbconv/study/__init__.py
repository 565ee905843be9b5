"""Studies: grids of networks and recipes over seeds, planned, run and judged."""
