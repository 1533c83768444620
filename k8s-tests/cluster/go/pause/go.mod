// The program that holds a pod's namespaces open.
module coffee-rt.dev/cluster/pause

go 1.24.0
