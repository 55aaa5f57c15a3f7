"""Device models: registers and nothing else (no bus, no interrupt line, no process)."""
