"""The real cores in virtual time over stores in memory, under faults drawn from a seed."""
