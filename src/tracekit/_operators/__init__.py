"""Linear operators as values: the record, conversion, combination, blocks, costs, tensor axes."""

from .basis import checked_basis
from .blocks import (
    blocked,
    blocks,
    columns_at_once,
    columns_that_fit,
    coordinates,
    dense,
    each_column,
    forms_of,
    has_plain_form,
    in_blocks,
    quadratic_forms,
    split,
    total,
    width,
)
from .combine import block_diagonal, centered, counted, gram, vstack
from .convert import as_operator, square
from .costs import (
    all_columns_cost,
    exact_diagonal_cost,
    exact_norm_cost,
    exact_trace_cost,
    itemsize,
    known_cost,
    matvecs_per_column,
)
from .linear_operator import LinearOperator, common_dtype
from .tensor_axes import Axes, read_axes, with_dims

__all__ = [
    "Axes",
    "LinearOperator",
    "all_columns_cost",
    "as_operator",
    "block_diagonal",
    "blocked",
    "blocks",
    "centered",
    "checked_basis",
    "columns_at_once",
    "columns_that_fit",
    "common_dtype",
    "coordinates",
    "counted",
    "dense",
    "each_column",
    "exact_diagonal_cost",
    "exact_norm_cost",
    "exact_trace_cost",
    "forms_of",
    "gram",
    "has_plain_form",
    "in_blocks",
    "itemsize",
    "known_cost",
    "matvecs_per_column",
    "quadratic_forms",
    "read_axes",
    "split",
    "square",
    "total",
    "vstack",
    "width",
    "with_dims",
]
