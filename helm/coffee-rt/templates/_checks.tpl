{{/*
Sums that must come out before anything is installed: connections to PostgreSQL, memory of the log, numbers of pods.
Each fails with its numbers, so that whoever reads it knows which value to change.
*/}}

{{- define "coffee-rt.checks" -}}
{{- include "coffee-rt.checks.pods" . -}}
{{- include "coffee-rt.checks.connections" . -}}
{{- include "coffee-rt.checks.memory" . -}}
{{- include "coffee-rt.checks.routes" . -}}
{{- include "coffee-rt.checks.certificates" . -}}
{{- end }}

{{/* The processes with autoscaling, as values key -> component. */}}
{{- define "coffee-rt.processes" -}}
orderApi: order-api
worker: worker
aggregator: aggregator
fanout: fanout
queryApi: query-api
{{- end }}

{{- define "coffee-rt.checks.pods" -}}
{{- range $key, $component := include "coffee-rt.processes" . | fromYaml -}}
{{- with (index $.Values $key).autoscaling -}}
{{- if .enabled -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "%s.autoscaling: minReplicas %v is above maxReplicas %v" $key .minReplicas .maxReplicas) -}}
{{- end -}}
{{- if and (eq (int .minReplicas) 0) (not (and (eq $key "worker") (eq $.Values.autoscaling.backend "keda"))) -}}
{{- fail (printf "%s.autoscaling.minReplicas is 0: only workers can start from zero, and only with autoscaling.backend: keda" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Most connections of all pools together. During a roll there are a quarter more pods (maxSurge). The reserve is for
superusers, backups and a doctor's visit. */}}
{{- define "coffee-rt.checks.connections" -}}
{{- $reserve := 10 -}}
{{- $usable := sub (include "coffee-rt.postgresqlMaxConnections" . | int) $reserve -}}
{{- $sum := 0 -}}
{{- $parts := list -}}
{{- range $key, $component := include "coffee-rt.processes" . | fromYaml -}}
{{- $values := index $.Values $key -}}
{{- $pods := $values.autoscaling.enabled | ternary $values.autoscaling.maxReplicas $values.replicas | int -}}
{{- $most := add $pods (ceil (divf $pods 4) | int) | int -}}
{{- $pool := int $values.databasePoolSizeMax -}}
{{- $sum = add $sum (mul $most $pool) -}}
{{- $parts = append $parts (printf "%s %d x %d" $component $most $pool) -}}
{{- end -}}
{{- with .Values.operator -}}
{{- if .enabled -}}
{{- $sum = add $sum (mul (int .replicas) (int .databasePoolSizeMax)) -}}
{{- $parts = append $parts (printf "operator %d x %d" (int .replicas) (int .databasePoolSizeMax)) -}}
{{- end -}}
{{- end -}}
{{- if .Values.migrate.enabled -}}
{{- $sum = add $sum 1 -}}
{{- $parts = append $parts "migrate 1" -}}
{{- end -}}
{{- if .Values.audit.enabled -}}
{{- $connections := include "coffee-rt.audit.connections" . | int -}}
{{- $sum = add $sum $connections -}}
{{- $parts = append $parts (printf "audit %d" $connections) -}}
{{- end -}}
{{- if gt (int $sum) (int $usable) -}}
{{- fail (printf "PostgreSQL takes %d connections, %d of them kept free, and the processes may open %d: %s (pods at their most, and a quarter more during a roll, times databasePoolSizeMax). Raise postgresql.maxConnections, or lower maxReplicas or databasePoolSizeMax." (add $usable $reserve) $reserve $sum (join ", " $parts)) -}}
{{- end -}}
{{- end }}

{{/* What the log holds: acknowledged orders for a while, all orders of an outage, and the idempotency keys. From
memoryRatioSlow of the memory on, new orders are refused. */}}
{{- define "coffee-rt.checks.memory" -}}
{{- $memory := include "coffee-rt.valkeyMaxmemoryBytes" . | int64 -}}
{{- if $memory -}}
{{- $hours := .Values.orderApi.settings.keyWindowHours | default 24 -}}
{{- $ratio := .Values.orderApi.settings.memoryRatioSlow | default 0.8 -}}
{{- $kept := .Values.worker.settings.trimKeepSeconds | default 600 -}}
{{- with .Values.capacity -}}
{{- $keys := mulf .ordersPerSecond .keyedShare 88 $hours 3600 -}}
{{- $orders := mulf .ordersPerSecond .orderBytes (addf (mulf .outageMinutes 60) $kept) -}}
{{- $usable := mulf $memory $ratio -}}
{{- if gt (addf $keys $orders) $usable -}}
{{- fail (printf "Valkey has %.0f MiB, of which orders may take %.0f (%v of it), and %v orders a second need %.0f: %.0f for the idempotency keys of %v hours, %.0f for orders of %v bytes over an outage of %v minutes. Give Valkey more memory, or lower what capacity or orderApi.settings.keyWindowHours ask for." (divf $memory 1048576) (divf $usable 1048576) $ratio .ordersPerSecond (divf (addf $keys $orders) 1048576) (divf $keys 1048576) $hours (divf $orders 1048576) .orderBytes .outageMinutes) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "coffee-rt.checks.routes" -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
{{- fail "gateway.enabled needs gateway.parentRefs: the Gateway that the route is attached to" -}}
{{- end -}}
{{- if and .Values.tls.enabled (not .Values.tls.secretName) -}}
{{- fail "tls.enabled needs tls.secretName: the Secret with the certificate of ingress.host" -}}
{{- end -}}
{{- end }}

{{/* Each certificate comes from one place: a Secret, whose files the chart mounts and names, or a setting that names a
file. With both, the Secret's path would win without a word. */}}
{{- define "coffee-rt.checks.certificates" -}}
{{- if and .Values.tls.databaseClientSecret (not .Values.tls.databaseCaSecret) -}}
{{- fail "tls.databaseClientSecret needs tls.databaseCaSecret: whom our certificate is shown to must be checked" -}}
{{- end -}}
{{- $extra := .Values.settings.extra | default dict -}}
{{- range $store := list "redis" "database" -}}
{{- $settings := index $.Values.settings $store | default dict -}}
{{- range $suffix, $files := dict "CaSecret" (list "caFile") "ClientSecret" (list "certificateFile" "keyFile") -}}
{{- $secret := print $store $suffix -}}
{{- if index $.Values.tls $secret -}}
{{- range $file := $files -}}
{{- $variable := printf "COFFEE_RT_%s_%s" $store (snakecase $file) | upper -}}
{{- $named := ternary (print "settings." $store "." $file) "" (not (empty (get $settings $file))) -}}
{{- $named = ternary (print "settings.extra." $variable) $named (not (empty (get $extra $variable))) -}}
{{- if $named -}}
{{- fail (printf "tls.%s and %s both say which file it is. Remove %s: the chart mounts the Secret's files and names them to every process. Or leave tls.%s empty, and mount a file of your own where every process finds it (extraVolumes)." $secret $named $named $secret) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
