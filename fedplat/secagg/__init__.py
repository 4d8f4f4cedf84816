"""Secure aggregation: the server learns the sum over a cohort, and nothing else (protocol, section 4).

The shape is that of Bonawitz et al. 2017, with keys agreed once an epoch: masked uploads, a cohort that its members
sign, and an answer that opens the sum over that cohort. Pure code: no files, no network, no clock.

`silo` and `server` are the two sides; `fixedpoint` and `prg` work on the vectors, also in parts.
"""
