"""What every report is made of: intervals, tables, and numbers that JSON can hold."""
