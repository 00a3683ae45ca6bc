"""Loading published weights, whatever their layout."""
