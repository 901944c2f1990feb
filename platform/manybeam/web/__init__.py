"""The control plane: the pages and the HTTP interface of the zoo, beside Ray, not in it."""
