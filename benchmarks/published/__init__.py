"""Plain versions of published steps, to measure against; written from descriptions of them."""
