"""One file for each library: how it is called, under the names that all share.

An adapter has `PEER`; `MODES`, the ways its calls can be run; `make(quantity, method, matrix, m,
mode, counter)`, which returns a function of a seed; `METHODS`, the names by quantity; and `bare`,
the product of a matrix with a block of m columns in the library's arrays. It may have `tolerance`.
"""
