// Where the Gateway API's CRDs come from; nothing is compiled.
module coffee-rt.dev/cluster/gateway-api

go 1.26.0

require sigs.k8s.io/gateway-api v1.6.1
