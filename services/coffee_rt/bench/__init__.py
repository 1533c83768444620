"""`coffee-rt bench`: measures, beside a ceiling and baselines of the same run. It never judges."""
