"""Topologies, the supervisor and the command line. The only package that knows both frontend and backend."""
