"""Ours and the peers, timed side by side in one run: `python -m benchmarks --help`.

Each contender lives in a process of its own and waits for its turn; the parent asks them round robin, so that a change
of the machine's load meets all of them. Before anything is timed, outputs are compared.
"""
