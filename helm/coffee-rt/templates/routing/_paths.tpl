{{/*
Which process answers which path: as services/coffee_rt/embedded/proxy.py has it for `coffee-rt up` (a test compares them).
Lists of path, type (Exact unless given), to, port (http unless given) and, for routers that can, methods.
*/}}

{{/* What stays open: sockets and event streams. */}}
{{- define "coffee-rt.livePaths" -}}
- {path: /ws, to: fanout, port: websocket}
- {path: /ws/dashboard, to: fanout, port: websocket}
- {path: /api/v1/live, to: fanout}
{{- end }}

{{- define "coffee-rt.plainPaths" -}}
- {path: /api/v1/orders/batch, to: order-api}
- {path: /api/v1/orders/openapi.json, to: order-api}
- {path: /api/order, to: order-api}
- {path: /api/v1/order, to: order-api}
- {path: /api/v2/order, to: order-api}
- {path: /api/v3/order, to: order-api}
- {path: /livez, to: order-api}
- {path: /readyz, to: order-api}
- {path: /metrics, to: order-api}
- {path: /api/v1/orders, to: order-api, methods: [POST, OPTIONS]}
- {path: /api, type: Prefix, to: query-api}
{{- end }}

{{/* Whatever is left. */}}
{{- define "coffee-rt.pagePaths" -}}
- {path: /, type: Prefix, to: fanout}
{{- end }}
