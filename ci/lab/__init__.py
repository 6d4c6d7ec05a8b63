"""A laboratory on one machine: hosts in network namespaces, joined by links of a limited rate, and a cluster on them."""
