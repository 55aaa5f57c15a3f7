"""The guest's side of the split: vCPU, mini-guest, device models and frontends."""
