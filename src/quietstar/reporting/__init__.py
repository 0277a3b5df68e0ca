"""Building blocks of every report: confidence intervals, tables, and numbers that are valid in JSON."""
