"""Studies that use the package and that the package never imports: reproduction, collapse, benchmarks."""
