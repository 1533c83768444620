{{/*
The two stores, whatever runs them: addresses, Secrets, limits and network peers, for the templates of the processes.

What others use (all take the root context):
  coffee-rt.storesEnv               EnvVars COFFEE_RT_REDIS_URL, COFFEE_RT_DATABASE_URL and, where there is one,
                                    COFFEE_RT_DATABASE_REPLICA_URL; also settings that the chosen modes need
  coffee-rt.storesSecretName        the chart's own Secret (redis-url, database-url, database-replica-url, passwords)
  coffee-rt.storesChecksum          changes when an address does: an annotation that rolls pods
  coffee-rt.redisUrl, .databaseUrl, .databaseReplicaUrl
                                    the addresses; a password from a Secret of yours stands in them as $(NAME)
  coffee-rt.valkeyMaxmemoryBytes    bytes that the log may hold in all (0: not known)
  coffee-rt.valkey.maxmemoryBytes   bytes that one Valkey may hold (0: not known)
  coffee-rt.valkey.primaries        servers that share the streams
  coffee-rt.postgresqlMaxConnections
                                    connections that the server, or one pooler, takes
  coffee-rt.storesEgressPeers       egress rules of a NetworkPolicy towards both stores
*/}}

{{- define "coffee-rt.storesSecretName" -}}
{{ include "coffee-rt.fullname" . }}-stores
{{- end }}

{{/* (root, store, key): a password of the release: the one it has, or a new one, the same in all templates. */}}
{{- define "coffee-rt.stores.password" -}}
{{- $cache := printf "_%s" .key -}}
{{- $values := index .root.Values .store -}}
{{- if not (hasKey $values $cache) -}}
{{- $secret := lookup "v1" "Secret" .root.Release.Namespace (include "coffee-rt.storesSecretName" .root) -}}
{{- $known := index (($secret | default dict).data | default dict) .key -}}
{{- $_ := set $values $cache (ternary ($known | default "" | b64dec) (randAlphaNum 32) (not (empty $known))) -}}
{{- end -}}
{{- index $values $cache -}}
{{- end }}

{{- define "coffee-rt.valkey.name" -}}
{{ include "coffee-rt.fullname" . }}-valkey
{{- end }}

{{/* CloudNativePG takes names of 50 characters at most. */}}
{{- define "coffee-rt.postgresql.name" -}}
{{ printf "%s-postgresql" (include "coffee-rt.fullname" .) | trunc 50 }}
{{- end }}

{{/* Domain of the Valkey pods' own names: stable where their addresses are not. */}}
{{- define "coffee-rt.valkey.domain" -}}
{{ include "coffee-rt.valkey.name" . }}-nodes.{{ .Release.Namespace }}.svc
{{- end }}

{{/* Name by which Sentinel knows the primary. */}}
{{- define "coffee-rt.valkey.masterName" -}}
coffee-rt
{{- end }}

{{/* Pods of the Valkey StatefulSet. */}}
{{- define "coffee-rt.valkey.pods" -}}
{{- $valkey := .Values.valkey -}}
{{- if eq $valkey.mode "sentinel" -}}
{{ $valkey.replicas }}
{{- else if eq $valkey.mode "cluster" -}}
{{ mul $valkey.cluster.primaries (add 1 $valkey.cluster.replicasPerPrimary) }}
{{- else -}}
1
{{- end -}}
{{- end }}

{{/* (root, port): all pods' names with a port, with commas. */}}
{{- define "coffee-rt.valkey.hosts" -}}
{{- $hosts := list -}}
{{- range $pod := until (int (include "coffee-rt.valkey.pods" .root)) -}}
{{- $hosts = append $hosts (printf "%s-%d.%s:%d" (include "coffee-rt.valkey.name" $.root) $pod (include "coffee-rt.valkey.domain" $.root) (int $.port)) -}}
{{- end -}}
{{ join "," $hosts }}
{{- end }}

{{- define "coffee-rt.redisUrl" -}}
{{- $valkey := .Values.valkey -}}
{{- if eq $valkey.mode "external" -}}
{{ $valkey.external.url }}
{{- else -}}
{{- $password := "$(VALKEY_PASSWORD)" -}}
{{- if not $valkey.existingSecret -}}
{{- $password = include "coffee-rt.stores.password" (dict "root" . "store" "valkey" "key" "valkey-password") -}}
{{- end -}}
{{- if eq $valkey.mode "sentinel" -}}
redis+sentinel://:{{ $password }}@{{ include "coffee-rt.valkey.hosts" (dict "root" . "port" 26379) }}/{{ include "coffee-rt.valkey.masterName" . }}/0
{{- else if eq $valkey.mode "cluster" -}}
redis+cluster://:{{ $password }}@{{ include "coffee-rt.valkey.hosts" (dict "root" . "port" 6379) }}
{{- else -}}
redis://:{{ $password }}@{{ include "coffee-rt.valkey.name" . }}.{{ .Release.Namespace }}.svc:6379/0
{{- end -}}
{{- end -}}
{{- end }}

{{- define "coffee-rt.databaseUrl" -}}
{{- $postgresql := .Values.postgresql -}}
{{- $name := include "coffee-rt.postgresql.name" . -}}
{{- if eq $postgresql.mode "external" -}}
{{ $postgresql.external.url }}
{{- else if eq $postgresql.mode "cloudnative-pg" -}}
postgresql://coffee_rt:$(POSTGRESQL_PASSWORD)@{{ $name }}-{{ ternary "pooler" "rw" $postgresql.cloudnativePg.pooler.enabled }}.{{ .Release.Namespace }}.svc:5432/coffee_rt
{{- else -}}
{{- $password := "$(POSTGRESQL_PASSWORD)" -}}
{{- if not $postgresql.existingSecret -}}
{{- $password = include "coffee-rt.stores.password" (dict "root" . "store" "postgresql" "key" "postgresql-password") -}}
{{- end -}}
postgresql://coffee_rt:{{ $password }}@{{ $name }}.{{ .Release.Namespace }}.svc:5432/coffee_rt?sslmode=disable
{{- end -}}
{{- end }}

{{/* Empty where there is no replica to read from. */}}
{{- define "coffee-rt.databaseReplicaUrl" -}}
{{- $postgresql := .Values.postgresql -}}
{{- if eq $postgresql.mode "external" -}}
{{ $postgresql.external.replicaUrl }}
{{- else if and (eq $postgresql.mode "cloudnative-pg") (gt (int $postgresql.cloudnativePg.instances) 1) -}}
postgresql://coffee_rt:$(POSTGRESQL_PASSWORD)@{{ include "coffee-rt.postgresql.name" . }}-ro.{{ .Release.Namespace }}.svc:5432/coffee_rt
{{- end -}}
{{- end }}

{{/* (secret, key, name, optional): an EnvVar from a Secret. */}}
{{- define "coffee-rt.stores.secretEnv" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
      {{- if .optional }}
      optional: true
      {{- end }}
{{- end }}

{{- define "coffee-rt.storesEnv" -}}
{{- $own := include "coffee-rt.storesSecretName" . -}}
{{- $valkey := .Values.valkey -}}
{{- if and (eq $valkey.mode "external") $valkey.external.existingSecret }}
{{ include "coffee-rt.stores.secretEnv" (dict "name" "COFFEE_RT_REDIS_URL" "secret" $valkey.external.existingSecret "key" "redis-url") }}
{{- else if and (ne $valkey.mode "external") $valkey.existingSecret }}
{{ include "coffee-rt.stores.secretEnv" (dict "name" "VALKEY_PASSWORD" "secret" $valkey.existingSecret "key" "valkey-password") }}
- name: COFFEE_RT_REDIS_URL
  value: {{ include "coffee-rt.redisUrl" . | quote }}
{{- else }}
{{ include "coffee-rt.stores.secretEnv" (dict "name" "COFFEE_RT_REDIS_URL" "secret" $own "key" "redis-url") }}
{{- end }}
{{- $postgresql := .Values.postgresql -}}
{{- $password := ternary (printf "%s-app" (include "coffee-rt.postgresql.name" .)) $postgresql.existingSecret (eq $postgresql.mode "cloudnative-pg") -}}
{{- if and (eq $postgresql.mode "external") $postgresql.external.existingSecret }}
{{ include "coffee-rt.stores.secretEnv" (dict "name" "COFFEE_RT_DATABASE_URL" "secret" $postgresql.external.existingSecret "key" "database-url") }}
{{ include "coffee-rt.stores.secretEnv" (dict "name" "COFFEE_RT_DATABASE_REPLICA_URL" "secret" $postgresql.external.existingSecret "key" "database-replica-url" "optional" true) }}
{{- else if and (ne $postgresql.mode "external") $password }}
{{ include "coffee-rt.stores.secretEnv" (dict "name" "POSTGRESQL_PASSWORD" "secret" $password "key" (ternary "password" "postgresql-password" (eq $postgresql.mode "cloudnative-pg"))) }}
- name: COFFEE_RT_DATABASE_URL
  value: {{ include "coffee-rt.databaseUrl" . | quote }}
{{- with include "coffee-rt.databaseReplicaUrl" . }}
- name: COFFEE_RT_DATABASE_REPLICA_URL
  value: {{ . | quote }}
{{- end }}
{{- else }}
{{ include "coffee-rt.stores.secretEnv" (dict "name" "COFFEE_RT_DATABASE_URL" "secret" $own "key" "database-url") }}
{{- if include "coffee-rt.databaseReplicaUrl" . }}
{{ include "coffee-rt.stores.secretEnv" (dict "name" "COFFEE_RT_DATABASE_REPLICA_URL" "secret" $own "key" "database-replica-url") }}
{{- end }}
{{- end }}
{{- if and (eq $postgresql.mode "cloudnative-pg") $postgresql.cloudnativePg.pooler.enabled (not (hasKey .Values.settings.database "statementCacheSize")) }}
# Named statements break in a pooler older than PgBouncer 1.21.
- name: COFFEE_RT_DATABASE_STATEMENT_CACHE_SIZE
  value: {{ $postgresql.cloudnativePg.pooler.statementCacheSize | quote }}
{{- end }}
{{- $cluster := $valkey.cluster }}
{{- $isCopied := or (eq $valkey.mode "sentinel") (and (eq $valkey.mode "cluster") (min $cluster.replicasPerPrimary $cluster.replicasToWriteMin)) }}
{{- if and $isCopied (not (hasKey .Values.orderApi.settings "replicasMin")) }}
# A 202 only when a replica has the order too: a failover then loses nothing that was answered.
- name: COFFEE_RT_ORDER_API_REPLICAS_MIN
  value: "1"
{{- end }}
{{- end }}

{{/* The same under the names of the process's templates. */}}
{{- define "coffee-rt.stores.env" -}}
{{- include "coffee-rt.storesEnv" . }}
{{- end }}

{{/* Without the generated passwords: a render without a cluster (GitOps) makes new ones each time. */}}
{{- define "coffee-rt.storesChecksum" -}}
{{- $values := dict "valkey" (omit .Values.valkey "_valkey-password") "postgresql" (omit .Values.postgresql "_postgresql-password") -}}
{{- $parts := list -}}
{{- range $store := list "valkey" "postgresql" -}}
{{- $of := index $values $store -}}
{{- $parts = append $parts (toJson (pick $of "mode" "existingSecret" "external" "replicas" "cluster" "cloudnativePg")) -}}
{{- end -}}
{{ join "" $parts | sha256sum | trunc 16 }}
{{- end }}

{{/* A Kubernetes quantity in bytes; "" is 0. */}}
{{- define "coffee-rt.stores.bytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $factors := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- if not (hasKey $factors $unit) }}{{ fail (printf "%q is no size: write 512Mi, 2Gi or a number of bytes" $text) }}{{ end -}}
{{ mulf (float64 (default "0" $number)) (index $factors $unit) | floor | int64 }}
{{- end }}

{{- define "coffee-rt.valkey.maxmemoryBytes" -}}
{{- $valkey := .Values.valkey -}}
{{- if eq $valkey.mode "external" -}}
{{ include "coffee-rt.stores.bytes" $valkey.external.maxmemory }}
{{- else -}}
{{- $limit := include "coffee-rt.stores.bytes" (dig "limits" "memory" "" $valkey.resources) | int64 -}}
{{- if $valkey.maxmemory -}}
{{- $asked := include "coffee-rt.stores.bytes" $valkey.maxmemory | int64 -}}
{{- if and $limit (gt (mulf $asked 4) (mulf $limit 3)) -}}
{{- fail (printf "valkey.maxmemory is %d bytes, and its container may take %d (valkey.resources.limits.memory). At most three quarters of that: a rewrite of the append-only file needs the rest, and a container over its limit is killed." $asked $limit) -}}
{{- end -}}
{{ $asked }}
{{- else if $limit -}}
{{ div (mul $limit 6) 10 }}
{{- else -}}
{{- fail "Give valkey.resources.limits.memory or valkey.maxmemory: Valkey must know when it is full, so that orders are refused before it is." -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "coffee-rt.valkey.primaries" -}}
{{ ternary (int .Values.valkey.cluster.primaries) 1 (eq .Values.valkey.mode "cluster") }}
{{- end }}

{{- define "coffee-rt.valkeyMaxmemoryBytes" -}}
{{ mul (include "coffee-rt.valkey.maxmemoryBytes" . | int64) (include "coffee-rt.valkey.primaries" . | int64) }}
{{- end }}

{{/* Behind a pooler it is what one pooler takes: its neighbours may be away. */}}
{{- define "coffee-rt.postgresqlMaxConnections" -}}
{{- $postgresql := .Values.postgresql -}}
{{- if and (eq $postgresql.mode "cloudnative-pg") $postgresql.cloudnativePg.pooler.enabled -}}
{{ $postgresql.cloudnativePg.pooler.clientConnectionsMax }}
{{- else -}}
{{ $postgresql.maxConnections }}
{{- end -}}
{{- end }}

{{/* (root, component): the pods of a component, as a NetworkPolicyPeer. */}}
{{- define "coffee-rt.stores.peer" -}}
- podSelector:
    matchLabels:
      {{- include "coffee-rt.selectorLabels" . | nindent 6 }}
{{- end }}

{{/* (list of numbers): ports of a NetworkPolicy. */}}
{{- define "coffee-rt.stores.ports" -}}
{{- range . }}
- port: {{ . }}
  protocol: TCP
{{- end }}
{{- end }}

{{- define "coffee-rt.storesEgressPeers" -}}
{{- $policy := .Values.networkPolicy -}}
{{- if eq .Values.valkey.mode "external" }}
- ports: {{- include "coffee-rt.stores.ports" $policy.redisPorts | nindent 4 }}
  {{- with $policy.redisTo }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- else }}
- ports: {{- include "coffee-rt.stores.ports" (ternary (list 6379 26379) (list 6379) (eq .Values.valkey.mode "sentinel")) | nindent 4 }}
  to: {{- include "coffee-rt.stores.peer" (dict "root" . "component" "valkey") | nindent 4 }}
{{- end }}
{{- if eq .Values.postgresql.mode "external" }}
- ports: {{- include "coffee-rt.stores.ports" $policy.databasePorts | nindent 4 }}
  {{- with $policy.databaseTo }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- else if eq .Values.postgresql.mode "cloudnative-pg" }}
- ports: {{- include "coffee-rt.stores.ports" (list 5432) | nindent 4 }}
  to:
    - podSelector:
        matchLabels:
          cnpg.io/cluster: {{ include "coffee-rt.postgresql.name" . }}
    {{- if .Values.postgresql.cloudnativePg.pooler.enabled }}
    - podSelector:
        matchLabels:
          cnpg.io/poolerName: {{ include "coffee-rt.postgresql.name" . }}-pooler
    {{- end }}
{{- else }}
- ports: {{- include "coffee-rt.stores.ports" (list 5432) | nindent 4 }}
  to: {{- include "coffee-rt.stores.peer" (dict "root" . "component" "postgresql") | nindent 4 }}
{{- end }}
{{- end }}

{{/* (root, values): what the pods of both stores have in common. */}}
{{- define "coffee-rt.stores.podSpec" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .values.uid | int64 }}
  runAsGroup: {{ .values.uid | int64 }}
  fsGroup: {{ .values.uid | int64 }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- range $key := list "nodeSelector" "tolerations" "topologySpreadConstraints" "priorityClassName" }}
{{- with index $.values $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* (root, values, component, checksum): annotations and labels of a store's pods. */}}
{{- define "coffee-rt.stores.podMetadata" -}}
annotations:
  checksum/config: {{ .checksum }}
  {{- with merge (dict) .values.podAnnotations .root.Values.commonAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
labels:
  {{- include "coffee-rt.labels" . | nindent 2 }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* (values): image and security of a store's container. */}}
{{- define "coffee-rt.stores.container" -}}
{{- with .values.image -}}
image: {{ ternary (printf "%s@%s" .repository .digest) (printf "%s:%s" .repository .tag) (not (empty .digest)) }}
imagePullPolicy: {{ .pullPolicy }}
{{- end }}
securityContext:
  {{- include "coffee-rt.containerSecurityContext" . | nindent 2 }}
{{- end }}

{{/* (name, persistence, labels): a claim of a StatefulSet. It stays when the release is uninstalled. */}}
{{- define "coffee-rt.stores.claim" -}}
metadata:
  name: {{ .name }}
  labels:
    {{- .labels | nindent 4 }}
spec:
  accessModes: [ReadWriteOnce]
  {{- with .persistence.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ .persistence.size }}
{{- end }}

{{/* (root, component, pattern): the scripts of a store, as ConfigMap data. */}}
{{- define "coffee-rt.stores.scripts" -}}
{{- range $path, $_ := .root.Files.Glob .pattern }}
{{ base $path }}: |
  {{- $.root.Files.Get $path | trim | nindent 2 }}
{{- end }}
{{- end }}

{{/* (root): the components that talk to the stores, as NetworkPolicyPeers. */}}
{{- define "coffee-rt.stores.clients" -}}
{{- range $component := list "order-api" "worker" "aggregator" "fanout" "query-api" "operator" "migrate" "audit" }}
{{ include "coffee-rt.stores.peer" (dict "root" $ "component" $component) }}
{{- end }}
{{- end }}

{{/* (settings): further lines of a configuration file, as NAME -> text. Helm reads numbers as floats. */}}
{{- define "coffee-rt.stores.text" -}}
{{- if kindIs "bool" . -}}
{{ ternary "yes" "no" . }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end }}
