"""Comparison of tracekit with other libraries, each in an environment of its own.

``python -m benchmarks.peers`` makes the environments, measures, prints the comparison, and writes
docs/measured/peers.json and the tables of docs/peers.md. The rooms: `environments` (one folder and
one list of pins each), `problems` (what everybody is given), `worker` (runs in a peer's Python, by
that peer's file in `adapters`), `judgement` (when ours is as good), `tables` (how it is told).
"""
