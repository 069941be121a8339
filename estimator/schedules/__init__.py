"""Pipeline schedules: which micro-batch each stage works on, in what order."""
