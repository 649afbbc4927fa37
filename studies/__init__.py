"""Studies: reproduction, collapse and benchmarks. They import the package, and the package does not import them."""
