"""Reports: what Records and a run folder hold, as tables and pages. Imports no torch."""
