"""The control plane: the pages and the HTTP interface of the zoo, in a process without Ray."""
