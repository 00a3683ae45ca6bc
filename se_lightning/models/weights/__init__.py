"""Loading of published weights in the layouts of several libraries."""
