"""A real Kubernetes of one or two nodes on one Debian machine, without containers around it.

`build` makes the programs and images once (build, cache, archive), `up` starts them (certificates,
network, cgroups, control_plane, node, addons) and `down` ends them (remains). All names, addresses
and folders are in `places`; what is written into configuration files is rendered by the pure
functions of `configs`. Only the standard library: it runs before any environment exists.
"""
