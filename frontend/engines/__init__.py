"""vCPU engines: what runs guest code and hands out exits."""
