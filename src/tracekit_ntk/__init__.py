"""Neural tangent kernels as operators: adapters from array libraries' models to `tracekit`."""

__all__: list[str] = []
